package stromboli

import "time"

// Bounds of secrets.
const (
	MaxSecretName  = 253
	MaxSecretValue = 1 << 20
)

// Secret is a value that the server keeps for a tenant, without the value.
type Secret struct {
	ID        string
	Tenant    string
	Name      string // unique in its tenant
	CreatedBy string
	CreatedAt time.Time
}

// SealedSecret is a secret as it is stored.
type SealedSecret struct {
	Secret
	KeyID string // names the key that sealed Box
	Box   []byte // nonce and ciphertext
}

// ValidSecretName reports whether a secret may have a name: 1 to 253 letters,
// digits, dashes and underscores.
func ValidSecretName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return name != "" && len(name) <= MaxSecretName
}
