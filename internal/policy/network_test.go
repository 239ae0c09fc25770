package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

func TestHosts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ pattern, canonical, yes, no string }{
		{"github.com", "github.com", "github.com:443 github.com:22", "api.github.com:443 github.com.evil.example:443 xgithub.com:443"},
		{"GitHub.com.:443", "github.com:443", "github.com:443", "github.com:80"},
		{"*.pypi.org:443", "*.pypi.org:443", "files.pypi.org:443 a.b.pypi.org:443", "pypi.org:443 xpypi.org:443 files.pypi.org:80"},
		{"192.0.2.7", "192.0.2.7", "192.0.2.7:1 [::ffff:192.0.2.7]:1 [64:ff9b::c000:207]:1", "192.0.2.8:1"},
		{"192.0.2.9/24:53", "192.0.2.0/24:53", "192.0.2.1:53", "192.0.2.1:54 192.0.3.1:53"},
		{"2001:db8::1", "2001:db8::1", "[2001:db8::1]:9", "[2001:db8::2]:9"},
		{"[2001:db8::1]:443", "[2001:db8::1]:443", "[2001:db8::1]:443", "[2001:db8::1]:80"},
		{"2001:db8::/32", "2001:db8::/32", "[2001:db8:ffff::1]:1", "[2001:db9::1]:1"},
		{"::ffff:192.0.2.7", "192.0.2.7", "192.0.2.7:5", "192.0.2.6:5"},
	} {
		hosts, _, err := ParseHosts([]string{c.pattern})
		if err != nil || hosts.Strings()[0] != c.canonical {
			t.Errorf("%q: %v, %v", c.pattern, hosts, err)
			continue
		}
		for _, target := range strings.Fields(c.yes + " " + c.no) {
			if want := slices.Contains(strings.Fields(c.yes), target); match(t, hosts, target) != want {
				t.Errorf("%s matches %s: %v", c.pattern, target, !want)
			}
		}
	}
	for _, bad := range []string{
		"", "*", "*.", "**.a.example", "a.*.example", "http://a.example", "a.example/x", "user@a.example", "a.example:0", "a.example:65536", "a.example:080",
		"a.example:", ":443", "0x7f.1", "2130706433", "127.1", "0177.0.0.1", "2001:db8::1:443x", "[2001:db8::1", "[a.example]:443", "[192.0.2.1]:80", "fe80::1%eth0",
		"*.192.0.2.1", "2001:db8::/32:443", "192.0.2.0/33", "::ffff:192.0.2.0/120", "bücher.example", "a b.example", "a\n.example", strings.Repeat("a", 300),
	} {
		if hosts, _, err := ParseHosts([]string{"ok.example", bad}); err == nil {
			t.Errorf("%q was taken as %v", bad, hosts)
		}
	}
}

func match(t *testing.T, h Hosts, target string) bool {
	t.Helper()
	i := strings.LastIndexByte(target, ':')
	port, err := ParsePort(target[i+1:])
	if err != nil {
		t.Fatal(err)
	}
	host := strings.Trim(target[:i], "[]")
	name, addr, err := ParseHost(host)
	if err != nil {
		t.Fatal(err)
	}
	if name != "" {
		_, ok := h.Name(name, port)
		return ok
	}
	_, ok := h.Addr(addr, port)
	return ok
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	open, list := NetworkConfig{}, NetworkConfig{Mode: "allowlist", Allow: []string{"*.example:443", "b.test"}, Deny: []string{"bad.example"}}
	type net = stromboli.Network
	for _, c := range []struct {
		name   string
		config NetworkConfig
		wish   net
		want   net
		field  string
	}{
		{"nothing", open, net{}, net{Mode: "open"}, ""},
		{"narrower", open, net{Mode: "model"}, net{Mode: "model"}, ""},
		{"allow alone is an allowlist", open, net{Allow: []string{"A.example:443"}}, net{Mode: "allowlist", Allow: []string{"a.example:443"}}, ""},
		{"deny", open, net{Deny: []string{"a.example"}}, net{Mode: "open", Deny: []string{"a.example"}}, ""},
		{"the list of configuration", list, net{}, net{Mode: "allowlist", Allow: []string{"*.example:443", "b.test"}, Deny: []string{"bad.example"}}, ""},
		{"within it", list, net{Allow: []string{"*.a.example:443", "b.test:22"}, Deny: []string{"c.example"}}, net{Mode: "allowlist", Allow: []string{"*.a.example:443", "b.test:22"}, Deny: []string{"bad.example", "c.example"}}, ""},
		{"model where the list is the widest", list, net{Mode: "model"}, net{Mode: "model", Deny: []string{"bad.example"}}, ""},
		{"wider than configuration", list, net{Mode: "open"}, net{}, "network.mode"},
		{"another host", list, net{Allow: []string{"b.test", "c.test"}}, net{}, "network.allow[1]"},
		{"another port", list, net{Allow: []string{"a.example"}}, net{}, "network.allow[0]"},
		{"the names above", list, net{Allow: []string{"*.test"}}, net{}, "network.allow[0]"},
		{"unknown", open, net{Mode: "wide"}, net{}, "network.mode"},
		{"allow without its mode", open, net{Mode: "open", Allow: []string{"a.example"}}, net{}, "network.allow"},
		{"bad pattern", open, net{Deny: []string{"a.example", "*"}}, net{}, "network.deny[1]"},
		{"too many", open, net{Deny: make([]string, 257)}, net{}, "network.deny"},
		{"bridge", open, net{Mode: "bridge"}, net{}, "network.mode"},
		{"bridge by name", NetworkConfig{Bridge: true}, net{Mode: "bridge"}, net{Mode: "bridge"}, ""},
		{"bridge is not filtered", NetworkConfig{Bridge: true}, net{Mode: "bridge", Deny: []string{"a.example"}}, net{}, "network.deny"},
		{"allow under model", NetworkConfig{Mode: "model"}, net{Allow: []string{"a.example"}}, net{}, "network.mode"},
	} {
		got, err := c.config.Network(c.wish)
		if c.field != "" {
			if fault, ok := err.(*stromboli.Error); !ok || fault.Details[0].Field != c.field { //nolint:errorlint // not wrapped
				t.Errorf("%s: %v, want a fault of %s", c.name, err, c.field)
			}
			continue
		}
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", c.name, err, diff)
		}
	}
	for _, bad := range []NetworkConfig{{Mode: "bridge"}, {Mode: "all"}, {Allow: []string{"*"}}, {Deny: []string{"http://a"}}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}

// FuzzHosts: a pattern's canonical form is a pattern with the same form, and
// covers itself.
func FuzzHosts(f *testing.F) {
	for _, s := range []string{"github.com", "*.pypi.org:443", "192.0.2.0/24", "[2001:db8::1]:443", "::1", "a:1", "::ffff:1.2.3.4", "0/0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		hosts, _, err := ParseHosts([]string{s})
		if err != nil {
			return
		}
		text := hosts.Strings()[0]
		again, _, err := ParseHosts([]string{text})
		if err != nil || again.Strings()[0] != text {
			t.Fatalf("%q became %q, then %v, %v", s, text, again, err)
		}
		if !hosts.covers(again[0]) {
			t.Fatalf("%q doesn't cover itself", text)
		}
		if p := hosts[0]; p.name == "" && p.prefix.Addr() != (netip.Addr{}) {
			if _, ok := hosts.Addr(p.prefix.Addr(), max(p.port, 1)); !ok && Embedded(p.prefix.Addr()) == p.prefix.Addr() {
				t.Fatalf("%q doesn't match its own address", text)
			}
		}
	})
}
