package stromboli

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"
)

// DeliveryStatus is how far a webhook's delivery is.
type DeliveryStatus string

// The statuses of deliveries.
const (
	DeliveryPending   DeliveryStatus = "pending"   // waits for its next attempt
	DeliverySending   DeliveryStatus = "sending"   // an attempt is being made
	DeliveryDelivered DeliveryStatus = "delivered" // the receiver answered 2xx
	DeliveryDead      DeliveryStatus = "dead"      // given up; can be redelivered
)

// Delivery is one message to a caller's webhook, written in the transaction
// that ends the run. Its URL is told to nobody: it may hold a secret.
type Delivery struct {
	ID       string // the message's id at the receiver, the same at each attempt
	Tenant   string
	RunID    string
	Host     string // host:port of the target
	Status   DeliveryStatus
	Attempts int // that were begun, redeliveries included
	// NextAt is when the next attempt is due; zero unless pending.
	NextAt time.Time
	// LastStatus is the HTTP status of the newest attempt's answer, 0 without
	// one; LastError says what was wrong, empty when nothing was.
	LastStatus int
	LastError  string
	CreatedAt  time.Time
	UpdatedAt  time.Time
	FinishedAt time.Time // zero unless delivered or dead
}

// ClaimedDelivery is a delivery of which an attempt is to be made: Attempts
// counts it, and Tries too, which begins anew at each redelivery.
type ClaimedDelivery struct {
	Delivery
	URL   string
	Body  []byte
	Tries int
}

// DeliveryResult is what became of an attempt. Status is the delivery's from
// now on; NextAt counts where that is pending.
type DeliveryResult struct {
	Status     DeliveryStatus
	NextAt     time.Time
	HTTPStatus int
	Error      string
	// Untold: the attempt was broken off by us, and its try doesn't count.
	Untold bool
}

// DeliveryFilter selects deliveries of a list; zero fields don't select.
type DeliveryFilter struct {
	Tenant   string
	Statuses []DeliveryStatus
	RunID    string
	Limit    int
	Cursor   string
}

const deliveryPrefix = "msg-"

// NewDeliveryID returns a new delivery id, "msg-" and 26 characters; ids sort
// by time.
func NewDeliveryID(now time.Time) string {
	return deliveryPrefix + strings.TrimPrefix(NewRunID(now), runPrefix)
}

// MaxWebhookOutput is the most that a webhook's body holds of a run's output,
// in bytes of JSON.
const MaxWebhookOutput = 1 << 20

// maxWebhookError bounds the error's text in the same way.
const maxWebhookError = 64 << 10

// WebhookPayload is the body of a webhook. Output and Error are bounded:
// OutputCut says that Output is only the beginning of OutputBytes bytes, which
// GET /jobs/{id} has as a whole.
type WebhookPayload struct {
	JobID       string `json:"job_id"`
	Status      Status `json:"status"`
	Output      string `json:"output,omitempty"`
	Error       string `json:"error,omitempty"`
	SessionID   string `json:"session_id,omitempty"`
	Usage       *Usage `json:"usage,omitempty"`
	OutputCut   bool   `json:"output_cut,omitempty"`
	OutputBytes int    `json:"output_bytes,omitempty"`
}

// NewWebhookPayload tells the outcome of a run.
func NewWebhookPayload(runID string, o Outcome) WebhookPayload {
	p := WebhookPayload{JobID: JobID(runID), Status: o.Status, SessionID: o.SessionID, Usage: o.Usage}
	p.Output = firstOfJSON(o.Output, MaxWebhookOutput)
	if len(p.Output) < len(o.Output) {
		p.OutputCut, p.OutputBytes = true, len(o.Output)
	}
	p.Error = firstOfJSON(o.Error, maxWebhookError)
	return p
}

// Body is the payload as it is sent and signed: one line of JSON, with <, > and
// & as themselves.
func (p WebhookPayload) Body() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// firstOfJSON returns the longest beginning of s, in whole characters, that
// takes no more than limit bytes as the inside of a string in JSON.
func firstOfJSON(s string, limit int) string {
	if 6*len(s) <= limit { // no byte takes more than six
		return s
	}
	size := 0
	for i, r := range s {
		switch {
		case r == '"' || r == '\\' || r == '\n' || r == '\r' || r == '\t' || r == '\b' || r == '\f':
			size += 2
		case r < ' ' || r == utf8.RuneError || r == '\u2028' || r == '\u2029':
			size += 6
		default:
			size += utf8.RuneLen(r)
		}
		if size > limit {
			return s[:i]
		}
	}
	return s
}
