package policy_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
)

func TestParseWebhookURL(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"http://example.com":                   "example.com:80",
		"https://Example.COM./a?key=secret":    "example.com:443",
		"https://hooks.example.com:8443/x%2Fy": "hooks.example.com:8443",
		"http://192.0.2.1:8080/":               "192.0.2.1:8080",
		"https://[2001:db8::1]/x":              "[2001:db8::1]:443",
		"HTTP://a-b_c.example/":                "a-b_c.example:80",
	} {
		got, err := policy.ParseWebhookURL(url)
		if err != nil || got.String() != want {
			t.Errorf("%s is %q, %v; want %q", url, got, err, want)
		}
	}
	for _, url := range []string{
		"example.com/hidden", "/hidden", "ftp://hidden.example/", "file:///etc/hidden", "http:", "http://", "http:///hidden", "http:hidden", "https://user:hidden@example.com/",
		"https://hidden@example.com/", "http://example.com/#hidden", "http://example.com:0/hidden", "http://example.com:65536/hidden", "http://example.com:080/hidden",
		"http://0x7f.1/hidden", "http://2130706433/hidden", "http://127.1/hidden", "http://[fe80::1%25eth0]/hidden", "http://exa mple.com/hidden", "http://example.com/\nhidden",
		"http://bücher.example/hidden", "http://example.com/%zzhidden", "javascript:hidden", "http://[::1/hidden", "http://example.com/" + strings.Repeat("hidden", 400),
	} {
		_, err := policy.ParseWebhookURL(url)
		var e *stromboli.Error
		if !errors.As(err, &e) || e.Code != stromboli.Invalid || len(e.Details) != 1 || e.Details[0].Field != "webhook_url" {
			t.Errorf("%.60q: %v", url, err)
		} else if strings.Contains(err.Error(), "hidden") {
			t.Errorf("the error quotes the URL: %v", err)
		}
	}
}

// TestWebhookTargets: what can be seen to be refused is refused at once; what a
// name stands for is judged when it is connected to.
func TestWebhookTargets(t *testing.T) {
	t.Parallel()
	allow, _, err := policy.ParseHosts([]string{"10.1.0.0/16", "hooks.lan", "*.corp:8080", "[fd00::/8]:9000", "localhost:7000"})
	if err != nil {
		t.Fatal(err)
	}
	for url, ok := range map[string]bool{
		"https://example.com/": true, "https://8.8.8.8/": true, "http://10.1.2.3/": true, "http://10.2.0.1/": false, "http://127.0.0.1:80/": false, "http://localhost/": false,
		"http://LOCALHOST.:1/": false, "http://localhost:7000/": true, "http://169.254.169.254/latest": false, "http://[::1]/": false, "http://[::ffff:10.2.0.1]/": false,
		"http://[fd00::1]/": false, "http://[fd00::1]:9000/": true, "http://hooks.lan/": true, "http://[64:ff9b::a01:203]/": true, "http://0.0.0.0/": false,
	} {
		if err := policy.CheckWebhook(url, allow); (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
	inside := netip.MustParseAddr("10.9.9.9")
	for target, ok := range map[policy.WebhookTarget]bool{
		{Name: "hooks.lan", Port: 1}: true, {Name: "a.corp", Port: 8080}: true, {Name: "a.corp", Port: 80}: false, {Name: "corp", Port: 8080}: false, {Name: "x.lan", Port: 1}: false,
	} {
		if allow.Permits(target, inside) != ok {
			t.Errorf("%s: want %v", target, ok)
		}
	}
}
