package config_test

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/config"
)

func TestWebhookSecrets(t *testing.T) {
	t.Parallel()
	encoded := base64.StdEncoding.EncodeToString([]byte("the key's own bytes"))
	for _, tt := range []struct {
		value string
		keys  []string // text=key
		wrong string
	}{
		{value: "", keys: nil},
		{value: "  ", keys: nil},
		{value: "plain", keys: []string{"plain=plain"}},
		{value: "whsec_" + encoded + " , older", keys: []string{"whsec_" + encoded + "=the key's own bytes", "older=older"}},
		{value: "hidden,,older", wrong: "secret 2 is empty"},
		{value: "hidden,", wrong: "secret 2 is empty"},
		{value: "whsec_hidden!", wrong: "not base64"},
		{value: "whsec_", wrong: "not base64"},
		{value: strings.Repeat("hidden,", 8) + "hidden", wrong: "at most 8"},
	} {
		got, err := (config.Webhook{SigningSecret: config.Secret(tt.value)}).Secrets()
		if tt.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wrong) || strings.Contains(err.Error(), "hidden") || !strings.HasPrefix(err.Error(), "STROMBOLI_WEBHOOK_SIGNING_SECRET: ") {
				t.Errorf("%q: %v", tt.value, err)
			}
			continue
		}
		var keys []string
		for _, s := range got {
			keys = append(keys, string(s.Text)+"="+string(s.Key))
			if s.Text.String() != "[hidden]" {
				t.Error("a secret shows itself")
			}
		}
		if err != nil || strings.Join(keys, " ") != strings.Join(tt.keys, " ") {
			t.Errorf("%q: %q, %v", tt.value, keys, err)
		}
	}
}

func TestWebhookSettings(t *testing.T) {
	t.Parallel()
	base := []string{"HOME=/h", "STROMBOLI_WEBHOOK_SIGNING_SECRET=s"}
	c, err := config.Load(append(base, "STROMBOLI_WEBHOOK_ALLOW=a.lan,10.0.0.0/8"))
	if err != nil || len(c.Webhook.Allow) != 2 || c.Webhook.Timeout != 15*time.Second || c.Webhook.CleanupTTL != 72*time.Hour {
		t.Fatalf("%+v, %v", c, err)
	}
	for _, wrong := range []string{"STROMBOLI_WEBHOOK_TIMEOUT=0s", "STROMBOLI_WEBHOOK_TIMEOUT=3m", "STROMBOLI_WEBHOOK_CLEANUP_TTL=1s", "STROMBOLI_WEBHOOK_TARGETS=x"} {
		name, _, _ := strings.Cut(wrong, "=")
		if _, err := config.Load(append(base, wrong)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}
