package api

import (
	"net/http"

	"github.com/tomblancdev/stromboli"
)

// contractVersion is what published clients compare with a semver range; the
// build's own version is at /version.
const contractVersion = "0.5.0-alpha"

type component struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Error  string `json:"error,omitempty"`
}

type healthBody struct {
	Name       string      `json:"name"`
	Status     string      `json:"status"`
	Version    string      `json:"version"`
	Components []component `json:"components"`
}

func (a *API) health(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	body := healthBody{Name: "stromboli", Status: "ok", Version: contractVersion, Components: []component{}}
	for _, c := range a.cfg.System.Health(r.Context()) {
		status := "ok"
		if c.Error != "" {
			status, body.Status = "error", "degraded"
		}
		body.Components = append(body.Components, component{c.Name, status, c.Error})
	}
	a.answer(w, r, http.StatusOK, body)
	return nil
}

type probeBody struct {
	Status  string   `json:"status"`
	Reasons []string `json:"reasons"`
}

// livez: that it answers is the answer.
func (a *API) livez(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	a.answer(w, r, http.StatusOK, probeBody{"ok", []string{}})
	return nil
}

func (a *API) readyz(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	reasons := append([]string{}, a.cfg.System.Ready(r.Context())...)
	if a.draining() {
		reasons = append(reasons, "the server is stopping")
	}
	if len(reasons) > 0 {
		a.answer(w, r, http.StatusServiceUnavailable, probeBody{"unavailable", reasons})
		return nil
	}
	a.answer(w, r, http.StatusOK, probeBody{"ok", reasons})
	return nil
}

func (a *API) version(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	v := a.cfg.System.Version(r.Context())
	v.Capabilities = append([]string{}, v.Capabilities...)
	v.Unsupported = append([]string{}, v.Unsupported...)
	a.answer(w, r, http.StatusOK, v)
	return nil
}

func (a *API) claudeStatus(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	a.answer(w, r, http.StatusOK, a.cfg.System.ClaudeStatus(r.Context(), p))
	return nil
}
