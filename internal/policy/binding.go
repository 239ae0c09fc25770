package policy

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// maxBindingValue bounds what a binding's header carries: servers take 8 KiB of
// headers in all.
const maxBindingValue = 7 << 10

// BindingHost is a binding's host in canonical form, "name:port".
func BindingHost(b stromboli.Binding) (string, error) {
	host, port := b.Host, uint16(443)
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		var err error
		if port, err = ParsePort(host[i+1:]); err != nil {
			return "", err
		}
		host = host[:i]
	}
	name, addr, err := ParseHost(strings.Trim(host, "[]"))
	switch {
	case strings.Contains(host, "*"):
		return "", errors.New("a binding is for one host: patterns would show the secret to hosts that nobody has named")
	case err != nil:
		return "", err
	case addr.IsValid():
		return "", errors.New("a binding is for a name: an address has no certificate to tell whose it is")
	case name == "localhost" || strings.HasSuffix(name, ".localhost"):
		return "", fmt.Errorf("%s is the sandbox itself: tools don't ask the proxy for it", name)
	}
	return net.JoinHostPort(name, strconv.Itoa(int(port))), nil
}

// bindings judges a request's bindings. What they bind must be within the
// request's own network: they never widen it.
func bindings(list []stromboli.Binding, n stromboli.Network, c Config) error {
	if len(list) > stromboli.MaxBindings {
		return stromboli.FieldError("bindings", "has %d entries, at most %d are possible", len(list), stromboli.MaxBindings)
	}
	bound := map[string]int{}
	for i, b := range list {
		at := field("bindings", i)
		to, err := BindingHost(b)
		if err != nil {
			return stromboli.FieldError(at+".host", "%v", err)
		}
		if first, twice := bound[to]; twice {
			return stromboli.FieldError(at+".host", "%s is bound by %s too", to, field("bindings", first))
		}
		bound[to] = i
		if err := bindable(to, n, c); err != nil {
			return stromboli.FieldError(at+".host", "%v", err)
		}
		if err := scheme(at, b); err != nil {
			return err
		}
	}
	return nil
}

// bindable reports why a network, or the model, leaves no place for a bound host.
func bindable(to string, n stromboli.Network, c Config) error {
	name, text, err := net.SplitHostPort(to)
	if err != nil {
		return err //nolint:wrapcheck // to is canonical
	}
	port, err := ParsePort(text)
	if err != nil {
		return err
	}
	if slices.Contains(c.ModelHosts, name) {
		return fmt.Errorf("%s is the model's, whose credential is configured on the server", name)
	}
	if n.Mode == stromboli.NetworkNone || n.Mode == stromboli.NetworkModel {
		return fmt.Errorf("%s can't be reached: the run's network mode is %s", to, n.Mode)
	}
	deny, _, err := ParseHosts(n.Deny)
	if err != nil {
		return err
	}
	if pattern, ok := deny.Name(name, port); ok {
		return fmt.Errorf("%s can't be reached: the run's network denies %s", to, pattern)
	}
	if n.Mode != stromboli.NetworkAllowlist {
		return nil
	}
	allow, _, err := ParseHosts(n.Allow)
	if err != nil {
		return err
	}
	if _, ok := allow.Name(name, port); !ok {
		return fmt.Errorf("%s is not among the hosts that the run's network allows; a binding doesn't add it to network.allow", to)
	}
	return nil
}

func scheme(at string, b stromboli.Binding) error {
	switch {
	case strings.HasPrefix(b.Secret, "engine:"):
		return &stromboli.Error{
			Code: stromboli.NotSupported, Message: at + ".secret: the engine's own secrets can't be bound; make the secret by POST /secrets",
			Details: []stromboli.Detail{{Field: at + ".secret", Message: "the engine's own secrets can't be bound"}},
		}
	case !stromboli.ValidSecretName(b.Secret):
		return stromboli.FieldError(at+".secret", "%s is no secret's name: 1 to %d letters, digits, dashes and underscores", quote(b.Secret), stromboli.MaxSecretName)
	case b.Username != "" && b.Scheme != stromboli.BindingBasic:
		return stromboli.FieldError(at+".username", "has a meaning with the scheme basic only")
	case len(b.Username) > maxName || strings.ContainsFunc(b.Username, notPrintable) || strings.Contains(b.Username, ":"):
		return stromboli.FieldError(at+".username", "is at most %d bytes of printable text without a colon", maxName)
	case b.Header != "" && b.Scheme != stromboli.BindingHeader:
		return stromboli.FieldError(at+".header", "has a meaning with the scheme header only")
	}
	switch b.Scheme {
	case stromboli.BindingBasic, stromboli.BindingBearer:
		return nil
	case stromboli.BindingHeader:
		return bindingHeader(at, b.Header)
	}
	return stromboli.FieldError(at+".scheme", "%s is unknown; it is one of basic, bearer, header", quote(string(b.Scheme)))
}

// bindingHeader refuses headers by which a message is framed or led: a secret
// has no place in them.
func bindingHeader(at, name string) error {
	lower := strings.ToLower(name)
	if name == "" || len(name) > maxName || strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return stromboli.FieldError(at+".header", "is required with the scheme header: 1 to %d letters, digits and dashes", maxName)
	}
	switch lower {
	case "host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "content-length", "upgrade", "expect", "proxy-connection", "proxy-authorization",
		"content-type", "content-encoding", "cookie":
		return stromboli.FieldError(at+".header", "%s carries no secret", quote(name))
	}
	return nil
}

// BindingValue is the header by which a binding shows a secret. White space
// around the secret, a file's last line break for one, doesn't count. The error
// doesn't repeat the secret.
func BindingValue(b stromboli.Binding, secret []byte) (header, value string, err error) {
	text := strings.TrimSpace(string(secret))
	header = "Authorization"
	switch b.Scheme {
	case stromboli.BindingBearer:
		value = "Bearer " + text
	case stromboli.BindingHeader:
		header, value = b.Header, text
	case stromboli.BindingBasic:
		switch {
		case b.Username != "":
			text = b.Username + ":" + text
		case !strings.Contains(text, ":"):
			text = stromboli.BindingUser + ":" + text
		}
		value = "Basic " + base64.StdEncoding.EncodeToString([]byte(text))
	}
	for _, c := range []byte(value) {
		if c < ' ' || c == 0x7f {
			return "", "", fmt.Errorf("the secret %s holds a character that no header may hold", b.Secret)
		}
	}
	switch {
	case len(strings.TrimSpace(string(secret))) == 0:
		return "", "", fmt.Errorf("the secret %s is blank", b.Secret)
	case len(value) > maxBindingValue:
		return "", "", fmt.Errorf("the secret %s is too long for a header, which takes %d bytes", b.Secret, maxBindingValue)
	}
	return header, value, nil
}
