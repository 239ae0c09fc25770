package stromboli

import (
	"fmt"
	"strings"
	"time"
)

// Principal is whoever asks: its tenant bounds what it sees, its scopes what it
// may do there, its name is a label in records.
type Principal struct {
	Tenant string
	Name   string
	Scopes Scopes
}

// Scopes is a set of things that a principal may do. None includes another.
type Scopes uint8

// The scopes.
const (
	ScopeRun   Scopes = 1 << iota // start, change and end runs; make and delete sessions
	ScopeRead                     // look at what there is
	ScopeAdmin                    // keep what runs are given: secrets
	AllScopes  = ScopeRun | ScopeRead | ScopeAdmin
)

// scopeNames are the scopes' names, in the order of their bits.
func scopeNames() []string { return []string{"run", "read", "admin"} }

// ParseScope takes a scope's name.
func ParseScope(name string) (Scopes, error) {
	for i, known := range scopeNames() {
		if name == known {
			return 1 << i, nil
		}
	}
	return 0, fmt.Errorf("%q is no scope; they are %s", name, strings.Join(scopeNames(), ", "))
}

// Has reports whether all of want are in the set.
func (s Scopes) Has(want Scopes) bool { return s&want == want }

// String is the names, separated by spaces.
func (s Scopes) String() string {
	var names []string
	for i, name := range scopeNames() {
		if s.Has(1 << i) {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// Grant is what is remembered of a login: an API token that was exchanged for
// JWTs, which all bear the grant's id. It ends with its last JWT.
type Grant struct {
	ID       string
	MintedBy string // names the API token, without telling it; empty: made while authentication was off
	Refresh  string // id of the one refresh token that may be used next
	Revoked  bool
	Created  time.Time
	Expires  time.Time // when nothing bears its id any more
}
