package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

func TestBindings(t *testing.T) {
	t.Parallel()
	type binding = stromboli.Binding
	good := func(host string) binding { return binding{Host: host, Secret: "s", Scheme: "basic"} }
	open := stromboli.Network{Mode: stromboli.NetworkOpen}
	many := make([]binding, stromboli.MaxBindings+1)
	for _, c := range []struct {
		name    string
		network stromboli.Network
		list    []binding
		field   string // of the refusal
	}{
		{"none", open, nil, ""},
		{"several", open, []binding{good("git.example"), good("git.example:8443"), {Host: "Registry.Example.", Secret: "s", Scheme: "bearer"}, {Host: "a", Secret: "s", Scheme: "header", Header: "X-Api-Key"}}, ""},
		{"too many", open, many, "bindings"},
		{"twice", open, []binding{good("git.example"), good("GIT.example:443")}, "bindings[1].host"},
		{"wildcard", open, []binding{good("*.example")}, "bindings[0].host"},
		{"IPv4", open, []binding{good("192.0.2.1")}, "bindings[0].host"},
		{"IPv6", open, []binding{good("[2001:db8::1]:443")}, "bindings[0].host"},
		{"number", open, []binding{good("2130706433")}, "bindings[0].host"},
		{"loopback", open, []binding{good("localhost:8443")}, "bindings[0].host"},
		{"no host", open, []binding{good("")}, "bindings[0].host"},
		{"URL", open, []binding{good("https://git.example")}, "bindings[0].host"},
		{"port", open, []binding{good("git.example:0443")}, "bindings[0].host"},
		{"the model's", open, []binding{good("API.model.example")}, "bindings[0].host"},
		{"the model's at another port", open, []binding{good("api.model.example:8443")}, "bindings[0].host"},
		{"mode none", stromboli.Network{Mode: stromboli.NetworkNone}, []binding{good("git.example")}, "bindings[0].host"},
		{"mode model", stromboli.Network{Mode: stromboli.NetworkModel}, []binding{good("git.example")}, "bindings[0].host"},
		{"denied", stromboli.Network{Mode: stromboli.NetworkOpen, Deny: []string{"*.example"}}, []binding{good("git.example")}, "bindings[0].host"},
		{"allowed", stromboli.Network{Mode: stromboli.NetworkAllowlist, Allow: []string{"*.example:443"}}, []binding{good("git.example")}, ""},
		{"not allowed", stromboli.Network{Mode: stromboli.NetworkAllowlist, Allow: []string{"*.example:443"}}, []binding{good("git.example:8443")}, "bindings[0].host"},
		{"no secret", open, []binding{{Host: "a.example", Scheme: "basic"}}, "bindings[0].secret"},
		{"engine's", open, []binding{{Host: "a.example", Secret: "engine:x", Scheme: "basic"}}, "bindings[0].secret"},
		{"no scheme", open, []binding{{Host: "a.example", Secret: "s"}}, "bindings[0].scheme"},
		{"unknown scheme", open, []binding{good("b.example"), {Host: "a.example", Secret: "s", Scheme: "Bearer"}}, "bindings[1].scheme"},
		{"no header", open, []binding{{Host: "a.example", Secret: "s", Scheme: "header"}}, "bindings[0].header"},
		{"a header that frames", open, []binding{{Host: "a.example", Secret: "s", Scheme: "header", Header: "Transfer-Encoding"}}, "bindings[0].header"},
		{"a header that is two", open, []binding{{Host: "a.example", Secret: "s", Scheme: "header", Header: "A: b\r\nC"}}, "bindings[0].header"},
		{"a header that does nothing", open, []binding{{Host: "a.example", Secret: "s", Scheme: "basic", Header: "X-Key"}}, "bindings[0].header"},
		{"a user that does nothing", open, []binding{{Host: "a.example", Secret: "s", Scheme: "bearer", Username: "u"}}, "bindings[0].username"},
		{"a user with a colon", open, []binding{{Host: "a.example", Secret: "s", Scheme: "basic", Username: "u:p"}}, "bindings[0].username"},
	} {
		err := bindings(c.list, c.network, Config{ModelHosts: []string{"api.model.example"}})
		if c.field == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		var fault *stromboli.Error
		if !errors.As(err, &fault) || len(fault.Details) != 1 || fault.Details[0].Field != c.field {
			t.Errorf("%s: %v, want one about %s", c.name, err, c.field)
		}
	}
}

func TestBindingValue(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		binding stromboli.Binding
		secret  string
		header  string
		value   string // empty: refused
	}{
		{stromboli.Binding{Scheme: "bearer"}, "tok\n", "Authorization", "Bearer tok"},
		{stromboli.Binding{Scheme: "basic"}, "tok", "Authorization", "Basic eC1hY2Nlc3MtdG9rZW46dG9r"},             // x-access-token:tok
		{stromboli.Binding{Scheme: "basic"}, "me:pass:word\r\n", "Authorization", "Basic bWU6cGFzczp3b3Jk"},        // me:pass:word
		{stromboli.Binding{Scheme: "basic", Username: "oauth2"}, "a:b", "Authorization", "Basic b2F1dGgyOmE6Yg=="}, // oauth2:a:b
		{stromboli.Binding{Scheme: "header", Header: "PRIVATE-TOKEN"}, "glpat", "PRIVATE-TOKEN", "glpat"},
		{stromboli.Binding{Scheme: "bearer"}, "a\nb", "", ""},
		{stromboli.Binding{Scheme: "header", Header: "X"}, "a\x00b", "", ""},
		{stromboli.Binding{Scheme: "basic"}, " \n", "", ""},
		{stromboli.Binding{Scheme: "bearer"}, strings.Repeat("x", 8<<10), "", ""},
	} {
		header, value, err := BindingValue(c.binding, []byte(c.secret))
		if header != c.header || value != c.value || (err == nil) != (c.value != "") {
			t.Errorf("%+v: %q %q %v", c.binding, header, value, err)
		}
		if err != nil && strings.Contains(err.Error(), strings.TrimSpace(c.secret)) && strings.TrimSpace(c.secret) != "" {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}
