package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tomblancdev/stromboli"
)

const (
	maxAnswer       = 64 << 10 // read of an answer's body, and thrown away
	maxAnswerHeader = 64 << 10
	// longestRetryAfter bounds what a receiver may ask for with Retry-After.
	longestRetryAfter = time.Hour
)

// newClient follows no redirect, uses no proxy (which would connect in our
// place, to what it likes), and keeps neither connections nor cookies.
func newClient(d *dialer) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: d.dial, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxAnswerHeader,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// outcome is what an attempt met. shown is for the deliveries' owner: it tells
// neither the URL nor what a name resolves to. err is for the log.
type outcome struct {
	status     int
	shown      string
	err        error
	retryAfter time.Duration
}

func (o outcome) ok() bool { return o.err == nil && o.status >= 200 && o.status <= 299 }

func (o outcome) log() string {
	if o.err != nil {
		return o.err.Error()
	}
	return o.shown
}

// send makes one attempt.
func (s *Sender) send(ctx context.Context, d stromboli.ClaimedDelivery) outcome {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URL, bytes.NewReader(d.Body))
	if err != nil {
		return failed(withoutURL(err))
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "stromboli-webhook/1")
	if err := sign(req.Header, s.cfg.Secrets, d.ID, s.cfg.Now(), d.Body); err != nil {
		return failed(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return failed(withoutURL(err))
	}
	defer func() { _ = resp.Body.Close() }()
	o := outcome{status: resp.StatusCode}
	switch {
	case o.ok():
	case resp.StatusCode >= 300 && resp.StatusCode <= 399:
		o.shown = fmt.Sprintf("the receiver answered %d, and redirects are not followed", resp.StatusCode)
	default:
		o.shown = fmt.Sprintf("the receiver answered %d", resp.StatusCode)
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
			o.retryAfter = min(time.Duration(min(n, 1<<20))*time.Second, longestRetryAfter)
		}
	}
	// The answer counts whatever follows it; reading a little lets the receiver
	// end in peace.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	return o
}

// withoutURL takes the URL out of an error of the client's.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

func failed(err error) outcome { return outcome{err: err, shown: explain(err)} }

// explain says what failed. The error's own text would tell of the network
// that the server stands in.
func explain(err error) string {
	dns, isDNS := errors.AsType[*net.DNSError](err)
	cert, isCert := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, errRefused):
		return errRefused.Error()
	case isDNS && dns.IsNotFound:
		return "the receiver's name is not known"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return "the receiver did not answer in time"
	case isDNS:
		return "the receiver's name could not be looked up"
	case isCert:
		return clip("the receiver's certificate is not accepted: " + cert.Err.Error())
	case errors.Is(err, http.ErrSchemeMismatch), noTLS(err):
		return "no TLS connection to the receiver could be made"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the receiver refused the connection"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the receiver broke the connection off"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "the receiver can't be reached"
	}
	return "the receiver did not answer as HTTP says"
}

func noTLS(err error) bool {
	_, header := errors.AsType[tls.RecordHeaderError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	return header || alert
}

func clip(s string) string {
	const most = 500
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
