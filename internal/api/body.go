package api

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/tomblancdev/stromboli"
)

// longBodyTime bounds the time for a body that may be larger than MaxBody.
const longBodyTime = time.Hour

// longBody reads a large body. It has all the time until the end as long as
// something comes within BodyTimeout. Its errors are for the caller.
type longBody struct {
	a     *API
	w     http.ResponseWriter
	r     *http.Request
	until time.Time
}

func (b *longBody) Read(p []byte) (int, error) {
	limit := time.Now().Add(b.a.cfg.BodyTimeout)
	if b.until.Before(limit) {
		limit = b.until
	}
	b.a.readDeadline(b.w, limit)
	n, err := b.r.Body.Read(p)
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.w.Header().Set("Connection", "close") // the rest of the body may still come
		return n, stromboli.Errorf(codeRequestTimeout, "nothing of the body came for %s, or it took longer than %s", b.a.cfg.BodyTimeout, longBodyTime)
	}
	return n, stromboli.Errorf(stromboli.Invalid, "the body could not be read to its end").WithCause(err)
}
