package api

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// position is a place in a run's stream: everything up to the event Seq was
// sent, of Seq itself the first Piece lines, or all of it when Piece is 0.
type position struct {
	RunID string
	Seq   int64
	Piece int64
}

// String is the position's wire form, "run-…/7" or "run-…/7.2".
func (p position) String() string {
	s := p.RunID + "/" + strconv.FormatInt(p.Seq, 10)
	if p.Piece > 0 {
		s += "." + strconv.FormatInt(p.Piece, 10)
	}
	return s
}

// start tells from where to follow, and how many lines of the first event to
// leave out.
func (p position) start() (after, skip int64) {
	if p.Piece > 0 {
		return p.Seq - 1, p.Piece
	}
	return p.Seq, 0
}

func parsePosition(s string) (position, bool) {
	id, rest, ok := strings.Cut(s, "/")
	if !ok {
		return position{}, false
	}
	var p position
	if p.RunID, ok = stromboli.ParseRunID(id); !ok {
		return position{}, false
	}
	seq, piece, more := strings.Cut(rest, ".")
	if p.Seq, ok = ordinal(seq); !ok {
		return position{}, false
	}
	if more {
		if p.Piece, ok = ordinal(piece); !ok || p.Piece == 0 || p.Seq == 0 {
			return position{}, false
		}
	}
	return p, true
}

// ordinal reads digits as this server writes them: no sign, no leading zero.
func ordinal(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= 0 && strconv.FormatInt(n, 10) == s
}

// resumed finds out whether a request for a run's stream means a run that
// exists. A position that is none of ours is refused: the caller wants to go
// on with something, and a second run is the last thing it wants.
func resumed(r *http.Request, q url.Values) (pos position, resume bool, err error) {
	last := r.Header.Get("Last-Event-ID")
	named := q.Get("run")
	if named != "" {
		id, ok := stromboli.ParseRunID(named)
		if !ok {
			return position{}, false, noSuchJob(named)
		}
		pos, resume = position{RunID: id}, true
	}
	if last == "" {
		return pos, resume, nil
	}
	from, ok := parsePosition(last)
	if !ok {
		return position{}, false, stromboli.FieldError("Last-Event-ID", "%q is not a position in a run's stream", clip(last))
	}
	if resume && from.RunID != pos.RunID {
		return position{}, false, stromboli.FieldError("Last-Event-ID", "belongs to another run than the parameter run")
	}
	return from, true, nil
}
