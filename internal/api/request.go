package api

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// contract is what the wire contract knows beyond stromboli.RunSpec.
func contract() vocabulary {
	return vocabulary{
		later: notSupportedYet,
		// One of the published clients sends it by mistake.
		ignored: func(path string) bool { return path == "signal" },
	}
}

// notSupportedYet names the contract's fields that this version refuses.
func notSupportedYet(path string) bool {
	switch path {
	case "permission_prompts", "workspace", "keep", "podman.environment":
		return true
	}
	return false
}

// readBody returns the whole body, at most Config.MaxBody bytes of it.
func (a *API) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	tooLarge := stromboli.Errorf(stromboli.TooLarge, "the body is larger than %d bytes", a.cfg.MaxBody)
	if r.ContentLength > a.cfg.MaxBody {
		return nil, tooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, a.cfg.MaxBody))
	if err == nil {
		a.bodyRead(w)
		return body, nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		w.Header().Set("Connection", "close") // the rest of the body may still come
		return nil, stromboli.Errorf(codeRequestTimeout, "the body did not arrive within %s", a.cfg.BodyTimeout)
	}
	return nil, stromboli.Errorf(stromboli.Invalid, "the body could not be read to its end").WithCause(err)
}

// readInto decodes the body of a request that has no fields but v's.
func (a *API) readInto(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := a.readBody(w, r)
	if err != nil {
		return err
	}
	return decodeStrictly(body, v)
}

func decodeStrictly(body []byte, v any) error {
	no := func(string) bool { return false }
	return decode(body, v, vocabulary{later: no, ignored: no})
}

// readSubmission makes a submission from a request's body and headers.
func (a *API) readSubmission(w http.ResponseWriter, r *http.Request, kind stromboli.Kind, endpoint string) (stromboli.Submission, error) {
	s := stromboli.Submission{Kind: kind, Idempotency: stromboli.Idempotency{Endpoint: endpoint}}
	var err error
	if s.Idempotency.Key, err = idempotencyKey(r); err != nil {
		return s, err
	}
	body, err := a.readBody(w, r)
	if err != nil {
		return s, err
	}
	if err := decode(body, &s.Spec, contract()); err != nil {
		return s, err
	}
	if err := checkPrompt(s.Spec.Prompt); err != nil {
		return s, err
	}
	s.Idempotency.Hash, err = specHash(s.Spec)
	return s, err
}

func checkPrompt(prompt string) error {
	if strings.TrimSpace(prompt) == "" {
		return stromboli.FieldError("prompt", "is required and must not be blank")
	}
	return nil
}

// specHash is the hash of the decoded body in its canonical form: spelling,
// order and unset fields of the JSON make no difference.
func specHash(spec stromboli.RunSpec) (string, error) {
	b, err := encode(spec)
	if err != nil {
		return "", fmt.Errorf("hash a request: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// idempotencyKey returns the caller's key, 1 to 255 visible ASCII characters,
// or nothing when there is none.
func idempotencyKey(r *http.Request) (string, error) {
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return "", nil
	}
	key := keys[0]
	ok := len(keys) == 1 && len(key) >= 1 && len(key) <= 255
	for _, c := range []byte(key) {
		ok = ok && c > ' ' && c < 0x7f
	}
	if !ok {
		return "", stromboli.FieldError("Idempotency-Key", "must be one header of 1 to 255 visible ASCII characters")
	}
	return key, nil
}

// query parses a request's query strictly: a broken escape is a mistake, not
// an absent parameter.
func query(r *http.Request) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, stromboli.Errorf(stromboli.Invalid, "the query string is malformed")
	}
	for name, values := range q {
		for _, v := range values {
			if strings.ToValidUTF8(v, "") != v {
				return nil, stromboli.FieldError(join("", name), "is not valid UTF-8")
			}
		}
	}
	return q, nil
}

// onlyParams refuses parameters beyond names, and those given twice: where a
// run is made, what was asked for is done or refused.
func onlyParams(q url.Values, names ...string) error {
	for _, name := range slices.Sorted(maps.Keys(q)) {
		switch {
		case !slices.Contains(names, name):
			return stromboli.FieldError(join("", name), "unknown parameter; it is one of %s", strings.Join(names, ", "))
		case len(q[name]) > 1:
			return stromboli.FieldError(name, "is given %d times", len(q[name]))
		}
	}
	return nil
}

// intParam reads an integer between low and high; unset gives def.
func intParam(q url.Values, name string, low, high, def int64) (int64, error) {
	s := q.Get(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < low || n > high {
		return 0, stromboli.FieldError(name, "must be an integer from %d to %d", low, high)
	}
	return n, nil
}

// boolParam reads true or false; unset is false.
func boolParam(q url.Values, name string) (bool, error) {
	switch q.Get(name) {
	case "", "false", "0":
		return false, nil
	case "true", "1":
		return true, nil
	}
	return false, stromboli.FieldError(name, "must be true or false")
}

// pageOf reads which page of something that is numbered is wanted.
func pageOf(q url.Values) (after int64, limit int, err error) {
	if after, err = intParam(q, "after", 0, 1<<53, 0); err != nil {
		return 0, 0, err
	}
	n, err := intParam(q, "limit", 1, maxPage, maxPage)
	return after, int(n), err
}

func timeParam(q url.Values, name string) (time.Time, error) {
	s := q.Get(name)
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, stromboli.FieldError(name, "must be a time such as 2026-01-31T12:00:00Z")
	}
	return t, nil
}

// runID takes a path's id. What can't be an id is unknown, as an id from
// another server would be.
func runID(r *http.Request) (string, error) {
	id, ok := stromboli.ParseRunID(r.PathValue("id"))
	if !ok {
		return "", noSuchJob(r.PathValue("id"))
	}
	return id, nil
}

func noSuchJob(id string) error {
	return stromboli.Errorf(stromboli.NotFound, "there is no job %q", clip(id))
}
