package api

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"

	"github.com/swaggest/swgui/v5/static"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api/openapi"
)

// serveDocument sends one of the embedded files.
func (a *API) serveDocument(name, contentType string) handler {
	return func(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
		body, err := openapi.Files.ReadFile(name)
		if err != nil {
			return fmt.Errorf("reading an embedded document: %w", err)
		}
		a.sendFile(w, r, contentType, body)
		return nil
	}
}

// docsPolicy lets the page run its own script and call this server, and nothing
// else.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// docsPage is the interactive page. All that it loads comes from here.
func (a *API) docsPage(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	w.Header().Set("Content-Security-Policy", docsPolicy)
	return a.serveDocument("docs.html", "text/html; charset=utf-8")(w, r, p)
}

// docsAsset sends a file of Swagger UI, which are embedded compressed.
func (a *API) docsAsset(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	name := r.PathValue("file")
	types := map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".png": "image/png"}
	contentType, known := types[path.Ext(name)]
	if !known {
		return stromboli.Errorf(stromboli.NotFound, "there is nothing at %s", clip(r.URL.Path))
	}
	if name == "docs.js" {
		return a.serveDocument(name, contentType)(w, r, p)
	}
	if body, err := static.FS.ReadFile(name); err == nil {
		a.sendFile(w, r, contentType, body)
		return nil
	}
	body, err := static.FS.ReadFile(name + ".gz")
	if err != nil {
		return stromboli.Errorf(stromboli.NotFound, "there is nothing at %s", clip(r.URL.Path))
	}
	w.Header().Set("Vary", "Accept-Encoding")
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
	} else if body, err = gunzip(body); err != nil {
		return fmt.Errorf("reading an embedded file: %w", err)
	}
	a.sendFile(w, r, contentType, body)
	return nil
}

func gunzip(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func (a *API) sendFile(w http.ResponseWriter, r *http.Request, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-cache")
	a.send(w, r, http.StatusOK, body)
}
