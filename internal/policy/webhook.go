package policy

import (
	"net/netip"
	"net/url"
	"strconv"

	"github.com/tomblancdev/stromboli"
)

// maxWebhookURL bounds a webhook's URL in bytes.
const maxWebhookURL = 2048

// WebhookTarget is the host of a webhook's URL: a name or an address, and the
// port.
type WebhookTarget struct {
	Name string // in lower case; "" for an address
	Addr netip.Addr
	Port uint16
}

// String is host:port.
func (t WebhookTarget) String() string {
	if t.Name == "" {
		return netip.AddrPortFrom(t.Addr, t.Port).String()
	}
	return t.Name + ":" + strconv.Itoa(int(t.Port))
}

// ParseWebhookURL judges the form of a webhook's URL. Its errors name the field
// and never quote the URL, which may hold a secret.
func ParseWebhookURL(text string) (WebhookTarget, error) {
	const field = "webhook_url"
	if len(text) > maxWebhookURL {
		return WebhookTarget{}, stromboli.FieldError(field, "has %d bytes, at most %d are possible", len(text), maxWebhookURL)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil: // its text would hold the URL
		return WebhookTarget{}, stromboli.FieldError(field, "is not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return WebhookTarget{}, stromboli.FieldError(field, "must begin with http:// or https://")
	case u.User != nil:
		return WebhookTarget{}, stromboli.FieldError(field, "must not hold a user or password; deliveries are signed, or put a token into the query")
	case u.Fragment != "" || u.RawFragment != "":
		return WebhookTarget{}, stromboli.FieldError(field, "must not have a fragment (#…): it is never sent")
	case u.Opaque != "" || u.Hostname() == "":
		return WebhookTarget{}, stromboli.FieldError(field, "has no host")
	}
	t := WebhookTarget{Port: 80}
	if u.Scheme == "https" {
		t.Port = 443
	}
	if p := u.Port(); p != "" {
		if t.Port, err = ParsePort(p); err != nil {
			return WebhookTarget{}, stromboli.FieldError(field, "has a port that is not 1 to 65535")
		}
	}
	if t.Name, t.Addr, err = ParseHost(u.Hostname()); err != nil {
		return WebhookTarget{}, stromboli.FieldError(field, "has a host that is neither a name nor an address")
	}
	return t, nil
}

// CheckWebhook refuses a URL of the wrong form, and one whose address can be
// seen to be refused at each attempt. What a name stands for is judged when it
// is connected to. It isn't part of Check, which judges a run again when it
// starts: a run must not fail because its webhook is no longer permitted.
func CheckWebhook(text string, allow Hosts) error {
	t, err := ParseWebhookURL(text)
	if err != nil {
		return err
	}
	addr := t.Addr
	if t.Name == "localhost" {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if !addr.IsValid() || allow.Permits(t, addr) {
		return nil
	}
	if err := PublicAddr(addr); err != nil {
		return stromboli.FieldError("webhook_url", "names a host that is not public; this server's STROMBOLI_WEBHOOK_ALLOW would have to permit it").WithCause(err)
	}
	return nil
}

// Permits reports whether h has a target's name, or the address that it
// resolved to.
func (h Hosts) Permits(t WebhookTarget, addr netip.Addr) bool {
	if _, ok := h.Name(t.Name, t.Port); ok && t.Name != "" {
		return true
	}
	_, ok := h.Addr(addr, t.Port)
	return ok
}
