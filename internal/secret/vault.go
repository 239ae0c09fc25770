package secret

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
)

// Store keeps sealed secrets. Every method is durable on return.
type Store interface {
	// CreateSecret answers stromboli.Conflict where the tenant has one of the name.
	CreateSecret(ctx context.Context, s stromboli.SealedSecret) error
	// GetSecret answers stromboli.NotFound.
	GetSecret(ctx context.Context, tenant, name string) (stromboli.SealedSecret, error)
	// ListSecrets returns a tenant's, by name, without their boxes.
	ListSecrets(ctx context.Context, tenant string) ([]stromboli.Secret, error)
	// DeleteSecret answers stromboli.NotFound.
	DeleteSecret(ctx context.Context, tenant, name string) error
	// OtherlySealed returns up to limit secrets of all tenants that another key
	// than this one sealed.
	OtherlySealed(ctx context.Context, keyID string, limit int) ([]stromboli.SealedSecret, error)
	// ReplaceBox changes how a secret is sealed, if it still is as s says.
	ReplaceBox(ctx context.Context, s stromboli.SealedSecret, keyID string, box []byte) error
}

// Vault is the secrets of all tenants.
type Vault struct {
	store Store
	keys  *Keyring
	now   func() time.Time
	mu    sync.Mutex // rekeying, which changes keys
}

// NewVault returns a vault.
func NewVault(store Store, keys *Keyring) *Vault {
	return &Vault{store: store, keys: keys, now: time.Now}
}

// Create keeps a new secret. Errors: Invalid with the field, Conflict.
func (v *Vault) Create(ctx context.Context, p stromboli.Principal, name string, value []byte) (stromboli.Secret, error) {
	s := stromboli.Secret{ID: uuid.NewString(), Tenant: p.Tenant, Name: name, CreatedBy: p.Name, CreatedAt: v.now().UTC()}
	switch {
	case !stromboli.ValidSecretName(name):
		return s, stromboli.FieldError("name", "is 1 to %d letters, digits, dashes and underscores", stromboli.MaxSecretName)
	case len(value) == 0:
		return s, stromboli.FieldError("value", "is required")
	case len(value) > stromboli.MaxSecretValue:
		return s, stromboli.FieldError("value", "is %d bytes long, at most %d are possible", len(value), stromboli.MaxSecretValue)
	case bytes.IndexByte(value, 0) >= 0:
		return s, stromboli.FieldError("value", "holds a NUL character, which no environment variable and no header can carry")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	keyID, box, err := v.keys.seal(p.Tenant, name, value)
	if err != nil {
		return s, err
	}
	return s, v.store.CreateSecret(ctx, stromboli.SealedSecret{Secret: s, KeyID: keyID, Box: box})
}

// Describe returns a secret without its value.
func (v *Vault) Describe(ctx context.Context, p stromboli.Principal, name string) (stromboli.Secret, error) {
	s, err := v.store.GetSecret(ctx, p.Tenant, name)
	return s.Secret, err
}

// List returns a tenant's secrets by name, without their values.
func (v *Vault) List(ctx context.Context, p stromboli.Principal) ([]stromboli.Secret, error) {
	return v.store.ListSecrets(ctx, p.Tenant)
}

// Delete forgets a secret. Runs that have started keep what they were given.
func (v *Vault) Delete(ctx context.Context, p stromboli.Principal, name string) error {
	return v.store.DeleteSecret(ctx, p.Tenant, name)
}

// Get returns a secret's value. Errors: NotFound; NotConfigured where the key
// that sealed it is not there.
func (v *Vault) Get(ctx context.Context, tenant, name string) ([]byte, error) {
	s, err := v.store.GetSecret(ctx, tenant, name)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	value, err := v.keys.open(s.Tenant, s.Name, s.KeyID, s.Box)
	if err != nil {
		return nil, stromboli.Errorf(stromboli.NotConfigured, "the secret %s can't be opened: %v", name, err)
	}
	return value, nil
}

// rekeyBatch is how many secrets are sealed anew at a time.
const rekeyBatch = 100

// Rekey makes a new key, seals every secret with it, and forgets the keys
// before, in this order: whoever dies in between leaves a file that opens
// everything, and the next Rekey finishes. It returns how many were sealed anew.
// A secret that can't be opened stops it, and nothing is forgotten.
func (v *Vault) Rekey(ctx context.Context) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fresh, err := newKey()
	if err != nil {
		return 0, err
	}
	if err := v.keys.save(append([]key{fresh}, v.keys.keys...)); err != nil {
		return 0, err
	}
	n := 0
	for {
		batch, err := v.store.OtherlySealed(ctx, fresh.id, rekeyBatch)
		if err != nil {
			return n, err
		}
		if len(batch) == 0 {
			return n, v.keys.save([]key{fresh})
		}
		for _, s := range batch {
			value, err := v.keys.open(s.Tenant, s.Name, s.KeyID, s.Box)
			if err != nil {
				return n, fmt.Errorf("the secret %s of the tenant %s: %w", s.Name, s.Tenant, err)
			}
			keyID, box, err := v.keys.seal(s.Tenant, s.Name, value)
			if err != nil {
				return n, err
			}
			if err := v.store.ReplaceBox(ctx, s, keyID, box); err != nil {
				return n, err
			}
			n++
		}
	}
}
