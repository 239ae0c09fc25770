package api

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/auth"
)

// Auth is what the API needs of those who know credentials. Credentials that
// don't hold are stromboli.Unauthenticated, with auth.ErrWrong in the chain
// where they may be a guess.
type Auth interface {
	// Issues reports whether there are JWTs; the next methods but Identify answer
	// stromboli.NotConfigured where there are none.
	Issues() bool
	// Identify finds out whose an API token or an access token is.
	Identify(ctx context.Context, credential string) (auth.Identity, error)
	// Issue makes a login, durable on return.
	Issue(ctx context.Context, by auth.Identity, clientID string) (auth.Pair, error)
	// Refresh exchanges a refresh token, once.
	Refresh(ctx context.Context, token string) (auth.Pair, error)
	// Revoke makes a login void, durably on return; stromboli.Invalid for an API
	// token.
	Revoke(ctx context.Context, id auth.Identity) error
}

// Access is who may call.
type Access int

// The accesses.
const (
	// AccessOpen: authentication is off. Everybody is the default tenant with all
	// scopes, credentials are ignored, and the Host header is checked.
	AccessOpen Access = iota
	// AccessAuth: every route but the open ones takes credentials.
	AccessAuth
	// AccessClosed: authentication is off, and strangers could call. Nothing but
	// /health, /livez and /readyz is answered; the Host header is checked.
	AccessClosed
)

type identityKey struct{}

// identityOf is who asks, for the routes that tell of credentials.
func identityOf(r *http.Request) auth.Identity {
	id, _ := r.Context().Value(identityKey{}).(auth.Identity)
	return id
}

// identify finds out who asks for a route and whether that route is theirs.
func (a *API) identify(rt route, w http.ResponseWriter, r *http.Request) (auth.Identity, error) {
	if rt.jwt && (a.cfg.Auth == nil || !a.cfg.Auth.Issues()) {
		return auth.Identity{}, stromboli.Errorf(stromboli.NotConfigured, "there are no JWTs here: the server has no STROMBOLI_JWT_SECRET")
	}
	if a.cfg.Access == AccessOpen || rt.open {
		return auth.Anyone(), nil
	}
	var id auth.Identity
	err := a.guarded(r, func() (err error) {
		var c string
		if c, err = credential(r); err == nil {
			id, err = a.cfg.Auth.Identify(r.Context(), c)
		}
		return err
	})
	if err != nil {
		return id, err
	}
	if err := a.limits.Load().account(w, id.Account); err != nil {
		return id, err
	}
	need := rt.scope
	if need == 0 && !rt.anyScope {
		need = stromboli.AllScopes // nobody has said what it needs
	}
	if !id.Scopes.Has(need) {
		return id, stromboli.Errorf(stromboli.ScopeMissing, "this needs the scope %s; the token has: %s", need, orNone(id.Scopes.String()))
	}
	return id, nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// guarded looks at a credential, unless too many wrong ones have come from the
// same address: then none is looked at, or guessing would go on.
func (a *API) guarded(r *http.Request, look func() error) error {
	if err := a.limits.Load().mayGuess(r); err != nil {
		return err
	}
	err := look()
	if errors.Is(err, auth.ErrWrong) {
		a.limits.Load().guessed(r)
	}
	return err
}

// errClosed names the ways out.
func errClosed() error {
	return stromboli.Errorf(stromboli.AuthRequired,
		"this server has no authentication and can be reached from outside, so it answers nothing but /health: "+
			"set STROMBOLI_AUTH_ENABLED=true with STROMBOLI_API_TOKENS, or STROMBOLI_AUTH_ALLOW_PUBLIC=true if whoever reaches it may run agents")
}

// credential takes the caller's token from its header. A scheme other than
// Bearer is a proxy's business where there is an X-API-Token. None is empty.
func credential(r *http.Request) (string, error) {
	authorization, token := r.Header.Values("Authorization"), r.Header.Values("X-Api-Token")
	if len(authorization) > 1 || len(token) > 1 {
		return "", stromboli.Errorf(stromboli.Unauthenticated, "there is more than one credential")
	}
	var found string
	if len(authorization) == 1 {
		scheme, rest, _ := strings.Cut(authorization[0], " ")
		if strings.EqualFold(scheme, "Bearer") {
			found = strings.TrimSpace(rest)
		}
	}
	if len(token) == 1 {
		other := strings.TrimSpace(token[0])
		if found != "" && other != "" && found != other {
			return "", stromboli.Errorf(stromboli.Unauthenticated, "Authorization and X-API-Token are two different credentials")
		}
		if found == "" {
			found = other
		}
	}
	return found, nil
}

// tokenRequest is the body of POST /auth/token.
type tokenRequest struct {
	ClientID string `json:"client_id"` // a label of the caller's
}

// refreshRequest is the body of POST /auth/refresh.
type refreshRequest struct {
	RefreshToken string `json:"refresh_token"`
}

// logoutBody is the answer of POST /auth/logout.
type logoutBody struct {
	Success bool   `json:"success"`
	Message string `json:"message"`
}

// pairBody is a login's answer.
type pairBody struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"` // seconds
}

func (a *API) answerPair(w http.ResponseWriter, r *http.Request, p auth.Pair) {
	a.answer(w, r, http.StatusOK, pairBody{p.Access, p.Refresh, "bearer", int64(p.Expiry.Seconds())})
}

func (a *API) authToken(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	var in tokenRequest
	if err := a.readInto(w, r, &in); err != nil {
		return err
	}
	ctx, cancel := detach(r)
	defer cancel()
	pair, err := a.cfg.Auth.Issue(ctx, identityOf(r), in.ClientID)
	if err == nil {
		a.answerPair(w, r, pair)
	}
	return err
}

func (a *API) authRefresh(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	var in refreshRequest
	if err := a.readInto(w, r, &in); err != nil {
		return err
	}
	ctx, cancel := detach(r)
	defer cancel()
	var pair auth.Pair
	err := a.guarded(r, func() (err error) {
		pair, err = a.cfg.Auth.Refresh(ctx, in.RefreshToken)
		return err
	})
	if err == nil {
		a.answerPair(w, r, pair)
	}
	return err
}

// validBody tells of a credential; one that is not valid has nothing more.
type validBody struct {
	Valid     bool   `json:"valid"`
	Subject   string `json:"subject,omitempty"`
	ExpiresAt int64  `json:"expires_at,omitempty"` // Unix seconds; absent: it doesn't end
}

func (a *API) authValidate(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	id, valid, err := a.presented(r)
	if err != nil {
		return err
	}
	body := validBody{Valid: valid, Subject: id.Name}
	if !id.Expires.IsZero() {
		body.ExpiresAt = id.Expires.Unix()
	}
	a.answer(w, r, http.StatusOK, body)
	return nil
}

func (a *API) authLogout(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	if err := a.dropBody(w, r); err != nil {
		return err
	}
	id, valid, err := a.presented(r)
	if err != nil {
		return err
	}
	done := logoutBody{true, "there was no login to end"}
	if valid {
		ctx, cancel := detach(r)
		defer cancel()
		if err := a.cfg.Auth.Revoke(ctx, id); err != nil {
			return err
		}
		done.Message = "logged out: the login's access and refresh tokens are void"
	}
	a.answer(w, r, http.StatusOK, done)
	return nil
}

// presented is whose credential came with a request, also where none is needed:
// there one that doesn't hold is not valid, and no error.
func (a *API) presented(r *http.Request) (id auth.Identity, valid bool, err error) {
	if a.cfg.Access == AccessAuth {
		return identityOf(r), true, nil
	}
	err = a.guarded(r, func() error {
		c, err := credential(r)
		if err == nil {
			id, err = a.cfg.Auth.Identify(r.Context(), c)
		}
		return err
	})
	if errors.Is(err, stromboli.Unauthenticated) {
		return auth.Identity{}, false, nil
	}
	return id, err == nil, err
}
