package modelstub

import (
	"net/http"
	"sync"
	"time"
)

// Request is a remembered Messages request.
type Request struct {
	At     time.Time   `json:"at"`
	Path   string      `json:"path"`
	Key    string      `json:"key,omitempty"`
	Step   int         `json:"step"` // -1: no directive
	Header http.Header `json:"header"`
	Body   string      `json:"body"`
	Size   int         `json:"size"` // of the whole body
}

// recorder keeps the newest requests within its bounds.
type recorder struct {
	maxRequests, maxBody, maxTotal int

	mu       sync.Mutex
	requests []Request
	total    int
}

func newRecorder(maxRequests, maxBody, maxTotal int) *recorder {
	return &recorder{maxRequests: maxRequests, maxBody: maxBody, maxTotal: maxTotal}
}

func (rec *recorder) add(r *http.Request, body []byte, key string, step int) {
	kept := body[:min(len(body), rec.maxBody)]
	req := Request{
		At: time.Now(), Path: r.URL.RequestURI(), Key: key, Step: step,
		Header: r.Header.Clone(), Body: string(kept), Size: len(body),
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.requests = append(rec.requests, req)
	rec.total += len(kept)
	for len(rec.requests) > rec.maxRequests || (rec.total > rec.maxTotal && len(rec.requests) > 1) {
		rec.total -= len(rec.requests[0].Body)
		rec.requests[0] = Request{} // lets the body go before the array does
		rec.requests = rec.requests[1:]
	}
}

func (rec *recorder) list(key string) []Request {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	out := []Request{}
	for _, r := range rec.requests {
		if key == "" || r.Key == key {
			out = append(out, r)
		}
	}
	return out
}

func (rec *recorder) reset() {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.requests, rec.total = nil, 0
}
