package config

import (
	"encoding/base64"
	"fmt"
	"strings"
	"time"
)

// Webhook is how callers are told of the end of their jobs.
type Webhook struct {
	// SigningSecret are secrets that sign webhooks, the newest first,
	// comma-separated (at most 8): whsec_ and base64, or any text of at least 24
	// bytes (a shorter one is used, with a warning); openssl rand -base64 32 makes
	// one. Without one nothing is signed.
	SigningSecret Secret `env:"SIGNING_SECRET"`
	// Allow are hosts that webhooks may be sent to though they aren't public,
	// comma-separated: hooks.internal, *.lan:8080, 10.1.0.0/16, [fd00::/8]:9000.
	// A name permits whatever it resolves to.
	Allow []string `env:"ALLOW" reload:"true"`
	// Timeout bounds one attempt, from the look-up of the name to the answer; 1s
	// to 2m.
	Timeout time.Duration `env:"TIMEOUT" envDefault:"15s"`
	// CleanupTTL is the age at which deliveries are deleted that have arrived or
	// were given up, with what they would say if they were sent again. What is
	// pending stays.
	CleanupTTL time.Duration `env:"CLEANUP_TTL" envDefault:"72h"`
}

const (
	webhookSecretVar  = "STROMBOLI_WEBHOOK_SIGNING_SECRET" //nolint:gosec // a name
	maxWebhookSecrets = 8
	standardPrefix    = "whsec_"
)

// WebhookSecret is one secret that signs webhooks. Text is what is configured,
// and the key of the contract's signature; Key is the key of the Standard
// Webhooks signature: what follows whsec_, decoded, else the text's bytes.
type WebhookSecret struct {
	Text Secret
	Key  Secret
}

// Secrets are the secrets that sign, the newest first; none where none is set.
// Its errors don't hold the value.
func (w Webhook) Secrets() ([]WebhookSecret, error) {
	text := string(w.SigningSecret)
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var all []WebhookSecret
	for i, s := range strings.Split(text, ",") {
		s = strings.TrimSpace(s)
		key := s
		if encoded, ok := strings.CutPrefix(s, standardPrefix); ok {
			b, err := base64.StdEncoding.DecodeString(encoded)
			if err != nil || len(b) == 0 {
				return nil, fmt.Errorf("%s: secret %d begins with %s, and what follows is not base64", webhookSecretVar, i+1, standardPrefix)
			}
			key = string(b)
		}
		if s == "" {
			return nil, fmt.Errorf("%s: secret %d is empty", webhookSecretVar, i+1)
		}
		all = append(all, WebhookSecret{Text: Secret(s), Key: Secret(key)})
	}
	if len(all) > maxWebhookSecrets {
		return nil, fmt.Errorf("%s: %d secrets, at most %d are possible", webhookSecretVar, len(all), maxWebhookSecrets)
	}
	return all, nil
}
