package engine

import "context"

// Secrets is the part of an engine that keeps secrets. They are made by the
// engine's own tools; nothing here reads a value.
type Secrets interface {
	// SecretList lists all secrets.
	SecretList(ctx context.Context) ([]Secret, error)
}

// Secret is a secret that an engine keeps.
type Secret struct {
	ID   string
	Name string // unique in the engine
}

// SecretMount puts a secret's value into a container as a file, mode 0400, of
// the container's root. Inspect shows its name and never its value.
type SecretMount struct {
	Secret string // id or name; a missing one is ErrSecretMissing at Create
	Target string // absolute path in the container
}
