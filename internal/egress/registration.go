package egress

import (
	"errors"
	"log/slog"

	"github.com/tomblancdev/stromboli"
)

// Sandbox is one sandbox's registration: who may speak on which socket.
type Sandbox struct {
	ID string `json:"id"`
	// RunID stands in the sandbox's records.
	RunID string `json:"run_id,omitempty"`
	// Tenant says whose endpoint of the model, with whose credential, answers
	// the sandbox. Empty: the default one's. It can't change.
	Tenant string `json:"tenant,omitempty"`
	// Network is what the sandbox may reach.
	Network stromboli.Network `json:"network"`
	// Bindings are hosts that are shown a secret. Connections to them are opened
	// with Identity.
	Bindings []Binding `json:"bindings,omitempty"`
	Identity Identity  `json:"identity,omitzero"`
	// Closed: its connections end, and its records wait to be read. Nothing but
	// ID matters then.
	Closed bool `json:"closed,omitempty"`
	// Socket is the path to listen on; it is taken over from whoever has it.
	Socket string `json:"socket"`
	// Token must follow "STROMBOLI/1 " on the first line of each connection.
	Token string `json:"token"`
	// PeerUID is the only uid whose connections are taken, if HasPeerUID. Else
	// any uid but NotUID is, if HasNotUID. With neither, connections wait (30 s)
	// for a registration that says it.
	PeerUID    uint32 `json:"peer_uid"`
	HasPeerUID bool   `json:"has_peer_uid"`
	NotUID     uint32 `json:"not_uid"`
	HasNotUID  bool   `json:"has_not_uid"`
}

func (s Sandbox) validate() error {
	switch {
	case !validID(s.ID):
		return errors.New("id: 1 to 128 letters, digits, - and _")
	case s.Closed:
		return nil
	case s.Socket == "" || s.Socket[0] != '/':
		return errors.New("socket: an absolute path")
	case len(s.Token) < 16 || len(s.Token) > 256:
		return errors.New("token: 16 to 256 characters")
	}
	_, err := compileSandbox(s)
	return err
}

// validID keeps an id from being a path: it names a file.
func validID(id string) bool {
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return id != "" && len(id) <= 128
}

// String implements fmt.Stringer without token and secrets.
func (s Sandbox) String() string { return "sandbox " + s.ID }

// GoString implements fmt.GoStringer without token and secrets.
func (s Sandbox) GoString() string { return s.String() }

// LogValue implements slog.LogValuer without token and secrets.
func (s Sandbox) LogValue() slog.Value { return slog.StringValue(s.ID) }

// peerVerdict is what a registration says of a peer's uid.
type peerVerdict int

const (
	peerUnknown peerVerdict = iota
	peerTaken
	peerRefused
)

func (s Sandbox) judgePeer(uid uint32) peerVerdict {
	ok := false
	switch {
	case s.HasPeerUID:
		ok = uid == s.PeerUID
	case s.HasNotUID:
		ok = uid != s.NotUID
	default:
		return peerUnknown
	}
	if ok {
		return peerTaken
	}
	return peerRefused
}
