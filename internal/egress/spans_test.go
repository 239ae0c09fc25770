package egress

import (
	"bytes"
	"net/http"
	"testing"
)

func (f *fixture) export(body []byte, header map[string]string) int {
	f.Helper()
	req, err := http.NewRequestWithContext(f.Context(), http.MethodPost, "http://egress/v1/traces", bytes.NewReader(body))
	if err != nil {
		f.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		f.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestSpans: exports are kept as they came, as far as there is room, and only
// where the server wants them.
func TestSpans(t *testing.T) {
	t.Parallel()
	off := newFixture(t, Config{})
	if got := off.export([]byte("x"), nil); got != http.StatusNotFound {
		t.Errorf("not wanted: %d", got)
	}
	f := newFixture(t, Config{Spans: true})
	big := bytes.Repeat([]byte("x"), maxExported-3)
	for _, tt := range []struct {
		name   string
		body   []byte
		header map[string]string
		want   int
	}{
		{"taken", []byte("one"), nil, http.StatusOK},
		{"as JSON", []byte("{}"), map[string]string{"Content-Type": "application/json"}, http.StatusUnsupportedMediaType},
		{"compressed", []byte("z"), map[string]string{"Content-Encoding": "gzip"}, http.StatusUnsupportedMediaType},
		{"too large", append(big, "four"...), nil, http.StatusRequestEntityTooLarge},
		{"the last that fits", big, nil, http.StatusOK},
		{"no more", []byte("x"), nil, http.StatusRequestEntityTooLarge},
	} {
		if got := f.export(tt.body, tt.header); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
	kept := f.g.list()[0].spans.all()
	if len(kept) != 2 || string(kept[0]) != "one" || len(kept[1]) != len(big) {
		t.Errorf("%d exports are kept", len(kept))
	}
	many := newFixture(t, Config{Spans: true})
	for i := range maxExports + 1 {
		want := http.StatusOK
		if i == maxExports {
			want = http.StatusRequestEntityTooLarge
		}
		if got := many.export(nil, nil); got != want {
			t.Errorf("empty export %d: %d, want %d", i, got, want)
		}
	}
}
