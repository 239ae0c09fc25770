package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli/internal/config"
)

// TestWebhookSettings: settings that can't work stop the start, a weak secret is
// told of, and no secret is told.
func TestWebhookSettings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ setting, wrong, warns string }{
		{"STROMBOLI_WEBHOOK_ALLOW=hooks.lan,10.0.0.0/8,[fd00::/8]:80", "", ""},
		{"STROMBOLI_WEBHOOK_ALLOW=hooks.lan,http://x/", "STROMBOLI_WEBHOOK_ALLOW: entry 2: ", ""},
		{"STROMBOLI_WEBHOOK_SIGNING_SECRET=a-long-hidden-secret-of-ours,whsec_aGlkZGVu", "", "secret=2"},
		{"STROMBOLI_WEBHOOK_SIGNING_SECRET=hidden,whsec_!hidden", "STROMBOLI_WEBHOOK_SIGNING_SECRET: secret 2 ", ""},
	} {
		environ := []string{"HOME=" + t.TempDir(), tt.setting}
		cfg, err := config.Load(environ)
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		_, err = signingSecrets(cfg, slog.New(slog.NewTextHandler(&log, nil)))
		if err == nil {
			_, err = webhookHosts(cfg)
		}
		if (err == nil) != (tt.wrong == "") || err != nil && (!strings.HasPrefix(err.Error(), tt.wrong) || strings.Contains(err.Error(), "hidden")) {
			t.Errorf("%s: %v", tt.setting, err)
		}
		if s := log.String(); strings.Contains(s, "hidden") || !strings.Contains(s, tt.warns) || tt.warns == "" && s != "" {
			t.Errorf("%s: the log says %q", tt.setting, s)
		}
		if tt.setting[:23] == "STROMBOLI_WEBHOOK_ALLOW" {
			if _, err := policyConfig(cfg, "i"); (err == nil) != (tt.wrong == "") {
				t.Errorf("%s: %v", tt.setting, err)
			}
		}
	}
}
