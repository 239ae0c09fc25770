package main

import (
	"fmt"
	"log/slog"

	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/webhook"
)

// shortSecret is below the least that Standard Webhooks gives a secret, in
// bytes.
const shortSecret = 24

// webhookHosts reads the hosts that webhooks may be sent to though they aren't
// public.
func webhookHosts(cfg *config.Config) (policy.Hosts, error) {
	hosts, i, err := policy.ParseHosts(cfg.Webhook.Allow)
	if err != nil {
		return nil, fmt.Errorf("STROMBOLI_WEBHOOK_ALLOW: entry %d: %w", i+1, err)
	}
	return hosts, nil
}

// signingSecrets are the secrets that sign webhooks.
func signingSecrets(cfg *config.Config, log *slog.Logger) ([]webhook.Secret, error) {
	configured, err := cfg.Webhook.Secrets()
	if err != nil {
		return nil, err
	}
	var secrets []webhook.Secret
	for i, s := range configured {
		if len(s.Key) < shortSecret {
			log.Warn("a secret that signs webhooks is short: make one with `openssl rand -base64 32`", "secret", i+1, "bytes", len(s.Key), "at_least", shortSecret)
		}
		secrets = append(secrets, webhook.Secret{Text: []byte(s.Text), Key: []byte(s.Key)})
	}
	return secrets, nil
}
