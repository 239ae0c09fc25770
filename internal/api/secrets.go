package api

import (
	"net/http"
	"time"

	"github.com/tomblancdev/stromboli"
)

// secretBody describes a secret; its value never leaves the server by here.
type secretBody struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

func secretOf(s stromboli.Secret) secretBody {
	return secretBody{ID: s.ID, Name: s.Name, CreatedAt: s.CreatedAt.UTC()}
}

type secretList struct {
	Secrets []secretBody `json:"secrets"`
}

// secretDone is the answer to what changes secrets.
type secretDone struct {
	Success bool   `json:"success"`
	Name    string `json:"name"`
}

func (a *API) listSecrets(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	secrets, err := a.cfg.Secrets.List(r.Context(), p)
	if err != nil {
		return err
	}
	list := secretList{make([]secretBody, 0, len(secrets))}
	for _, s := range secrets {
		list.Secrets = append(list.Secrets, secretOf(s))
	}
	a.answer(w, r, http.StatusOK, list)
	return nil
}

// newSecret is the body of POST /secrets.
type newSecret struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (a *API) createSecret(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	var in newSecret
	if err := a.readInto(w, r, &in); err != nil {
		return err
	}
	ctx, cancel := detach(r)
	defer cancel()
	s, err := a.cfg.Secrets.Create(ctx, p, in.Name, []byte(in.Value))
	if err != nil {
		return err
	}
	actedOn(r, s.Name)
	a.answer(w, r, http.StatusCreated, secretDone{true, s.Name})
	return nil
}

func (a *API) getSecret(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	s, err := a.cfg.Secrets.Describe(r.Context(), p, r.PathValue("name"))
	if err != nil {
		return err
	}
	a.answer(w, r, http.StatusOK, secretOf(s))
	return nil
}

func (a *API) deleteSecret(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	name := r.PathValue("name")
	ctx, cancel := detach(r)
	defer cancel()
	if err := a.cfg.Secrets.Delete(ctx, p, name); err != nil {
		return err
	}
	a.answer(w, r, http.StatusOK, secretDone{true, name})
	return nil
}
