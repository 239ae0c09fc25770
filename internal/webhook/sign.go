package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Secret signs webhooks. Text is the key of the contract's signature, Key that
// of Standard Webhooks.
type Secret struct {
	Text, Key []byte
}

// sign adds the headers that identify and prove a message. The standard's
// signature has one part for each secret, so that receivers may change theirs
// at any time while both are configured; the contract's has room for one, the
// newest.
func sign(h http.Header, secrets []Secret, id string, at time.Time, body []byte) error {
	seconds := strconv.FormatInt(at.Unix(), 10)
	h.Set(standard.HeaderWebhookID, id)
	h.Set(standard.HeaderWebhookTimestamp, seconds)
	if len(secrets) == 0 {
		return nil
	}
	mac := hmac.New(sha256.New, secrets[0].Text)
	_, _ = mac.Write([]byte(seconds + ".")) // a hash never fails
	_, _ = mac.Write(body)
	h.Set("X-Stromboli-Timestamp", seconds)
	h.Set("X-Stromboli-Signature", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	var parts []string
	for _, s := range secrets {
		signer, err := standard.NewWebhookRaw(s.Key)
		if err != nil {
			return fmt.Errorf("signing a webhook: %w", err)
		}
		part, err := signer.Sign(id, at, body)
		if err != nil {
			return fmt.Errorf("signing a webhook: %w", err)
		}
		parts = append(parts, part)
	}
	h.Set(standard.HeaderWebhookSignature, strings.Join(parts, " "))
	return nil
}
