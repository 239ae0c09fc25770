package e2e_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// canary is part of every secret that the tests give a server. At the end of
// each server's life everything that it wrote is searched for it, and every
// answer to the tests' client while it passes: a secret that turns up in a
// file, the database, a log, an event or an answer fails the test that is
// running.
const canary = "c4naryS3cret"

// promptCanary ends every prompt that the tests make, and outputCanary may be
// said by agents and hooks: no line of the server's log holds them, at any
// level.
const (
	promptCanary = "c4naryPr0mpt"
	outputCanary = "c4naryOutpUt"
)

// modelKey is the credential of the model that servers get.
const modelKey = "sk-ant-" + canary + "-key"

// canaryForms are the ways in which a secret may lie about: as it is, in
// hexadecimal, and in base64 at each of the three alignments, as a Basic header
// holds it.
var canaryForms = sync.OnceValue(func() [][]byte { //nolint:gochecknoglobals // a constant
	forms := [][]byte{[]byte(canary), []byte(hex.EncodeToString([]byte(canary)))}
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + canary))
		// The first and the last group depend on what stands beside the secret.
		forms = append(forms, []byte(text[4*((shift+2)/3):len(text)/4*4-4]))
	}
	return forms
})

// canaryWriter remembers the first form that passes through it, across the
// borders of writes.
type canaryWriter struct {
	rest  []byte
	found string
}

// Write implements io.Writer.
func (w *canaryWriter) Write(p []byte) (int, error) {
	text := append(w.rest, p...) //nolint:gocritic // rest is replaced below
	for _, form := range canaryForms() {
		if i := bytes.Index(text, form); i >= 0 && w.found == "" {
			w.found = string(text[max(0, i-60):min(len(text), i+len(form)+20)])
		}
	}
	w.rest = bytes.Clone(text[max(0, len(text)-4*len(canary)):])
	return len(p), nil
}

// canaryInTree searches every file below dir, and every name.
func canaryInTree(dir string) (found []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // what ends is still being cleared away
		}
		if err != nil {
			return err
		}
		if strings.Contains(path, canary) {
			found = append(found, path)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil // gone since
		}
		defer func() { _ = f.Close() }()
		var w canaryWriter
		if _, err := io.Copy(&w, f); err != nil {
			return err
		}
		if w.found != "" {
			found = append(found, fmt.Sprintf("%s: %q", path, w.found))
		}
		return nil
	})
	return found, err
}

// searchForSecrets looks through everything that the server left.
func (s *server) searchForSecrets() {
	s.t.Helper()
	found, err := canaryInTree(s.data)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Errorf("searching for secrets: %v", err)
	}
	var log canaryWriter
	written := s.log.tail(1 << 30)
	_, _ = io.WriteString(&log, written)
	for _, said := range []string{promptCanary, outputCanary} {
		if i := strings.Index(written, said); i >= 0 {
			s.t.Errorf("the server's log has of a prompt or an output: %q", written[max(0, i-300):min(len(written), i+50)])
		}
	}
	if log.found != "" {
		found = append(found, fmt.Sprintf("the server's log: %q", log.found))
	}
	for _, place := range found {
		s.t.Errorf("a secret lies in %s", place)
	}
}

// canaryTransport searches what the server answers.
type canaryTransport struct {
	t *testing.T
	*http.Transport
}

// RoundTrip implements http.RoundTripper.
func (c canaryTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if as := resp.Header.Get("Content-Type"); as == "application/json" && r.Method != http.MethodHead {
		resp.Body = &judgedBody{ReadCloser: resp.Body, t: c.t, answer: resp}
	} else {
		suite.contract.judge(c.t, r, resp.StatusCode, as, nil)
	}
	body := &canaryBody{ReadCloser: resp.Body, t: c.t, what: r.Method + " " + r.URL.Path}
	_ = resp.Header.Write(&body.w)
	resp.Body = body
	return resp, nil
}

type canaryBody struct {
	io.ReadCloser
	t    *testing.T
	what string
	w    canaryWriter
	told bool
}

// Read implements io.Reader.
func (b *canaryBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	_, _ = b.w.Write(p[:n])
	if b.w.found != "" && !b.told {
		b.told = true
		b.t.Errorf("a secret is in the answer to %s: %q", b.what, b.w.found)
	}
	return n, err
}

// TestCanary shows that the search finds what it is for.
func TestCanary(t *testing.T) {
	dir := t.TempDir()
	if found, err := canaryInTree(dir); err != nil || len(found) != 0 {
		t.Fatalf("in an empty directory: %v, %v", found, err)
	}
	for name, text := range map[string]string{
		"plain":   "x " + modelKey + " y",
		"header":  base64.StdEncoding.EncodeToString([]byte("user:" + modelKey)),
		"header1": base64.StdEncoding.EncodeToString([]byte("user1:" + modelKey)),
		"header2": base64.StdEncoding.EncodeToString([]byte("user12:" + modelKey)),
		"hex":     hex.EncodeToString([]byte(modelKey)),
		"border":  strings.Repeat("x", 32<<10-9) + modelKey, // across the borders of reads
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if found, err := canaryInTree(dir); err != nil || len(found) != 1 {
			t.Errorf("%s: %v, %v", name, found, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
