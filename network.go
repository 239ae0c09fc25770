package stromboli

import "time"

// NetworkMode says how far a sandbox reaches.
type NetworkMode string

// The modes, from the narrowest to the widest.
const (
	// NetworkNone: nothing, not even the model.
	NetworkNone NetworkMode = "none"
	// NetworkModel: the model's endpoint alone.
	NetworkModel NetworkMode = "model"
	// NetworkAllowlist: the model and the hosts that Network.Allow names.
	NetworkAllowlist NetworkMode = "allowlist"
	// NetworkOpen: the model and every public host but those that
	// Network.Deny names.
	NetworkOpen NetworkMode = "open"
	// NetworkBridge: a network device of the engine's, not filtered.
	NetworkBridge NetworkMode = "bridge"
)

// Network is what a run asks of its network, or what is in force. Hosts are
// patterns such as "github.com", "*.pypi.org:443", "192.0.2.0/24" or
// "[2001:db8::1]:443": a name, a name below which others lie, an address or a
// range, and a port where not all are meant. No pattern of a request reaches an
// address that isn't public.
type Network struct {
	// Mode; unset: the server's default.
	Mode NetworkMode `json:"mode,omitempty"`
	// Allow are the hosts of the mode allowlist.
	Allow []string `json:"allow,omitempty"`
	// Deny are hosts that are refused in every mode; it beats Allow.
	Deny []string `json:"deny,omitempty"`
}

// EgressVerdict is what became of a connection.
type EgressVerdict string

// The verdicts.
const (
	EgressAllowed EgressVerdict = "allowed" // it was made
	EgressDenied  EgressVerdict = "denied"  // the policy refused it
	EgressFailed  EgressVerdict = "failed"  // it was permitted and could not be made
)

// EgressRecord tells of one connection that a sandbox made or wanted to make:
// a tunnel, a proxied request, or a request to the model. It is written when
// the connection has ended.
type EgressRecord struct {
	// Seq counts 1, 2, 3, … per run, without gaps, in the order in which
	// connections ended.
	Seq   int64     `json:"seq"`
	RunID string    `json:"run_id"`
	At    time.Time `json:"at"` // when it began
	// Kind: connect (a tunnel), binding (a tunnel that was opened to show a secret),
	// request (plain HTTP) or model.
	Kind string `json:"kind"`
	Host string `json:"host"`
	Port int    `json:"port"`
	// Address is what was dialled, empty if nothing was.
	Address string        `json:"address,omitempty"`
	Verdict EgressVerdict `json:"verdict"`
	// Why is the rule or the fault, in words; empty for what was allowed.
	Why string `json:"why,omitempty"`
	// Sent and Received are bytes from and to the sandbox.
	Sent       int64 `json:"sent"`
	Received   int64 `json:"received"`
	DurationMS int64 `json:"duration_ms"`
	// Status is the HTTP status of a model request's answer, 0 without one.
	Status int `json:"status,omitempty"`
	// Usage is what egress itself counted in a model request's answer.
	Usage *Usage `json:"usage,omitempty"`
}

// EgressDeniedData is the data of an egress.denied event.
type EgressDeniedData struct {
	Host string `json:"host"`
	Port int    `json:"port"`
	Why  string `json:"why"`
}
