package e2e_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// What Chrome 131 on Linux sends, by kind of request. The fetch metadata
// (Sec-Fetch-*) and client hints go to trustworthy addresses only: loopback is
// one, a rebound name over plain HTTP is not, and gets neither. Observed with
// the Fetch Metadata and Fetch specifications, not recorded from a browser.
func chrome(headers ...string) []string {
	return append([]string{
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
		"Accept-Encoding: gzip, deflate, br, zstd", "Accept-Language: en-US,en;q=0.9",
	}, headers...)
}

func trusted(site, mode, dest string, headers ...string) []string {
	return chrome(append([]string{
		`Sec-Ch-Ua: "Google Chrome";v="131", "Chromium";v="131", "Not_A Brand";v="24"`, "Sec-Ch-Ua-Mobile: ?0", `Sec-Ch-Ua-Platform: "Linux"`,
		"Sec-Fetch-Site: " + site, "Sec-Fetch-Mode: " + mode, "Sec-Fetch-Dest: " + dest,
	}, headers...)...)
}

const (
	imageAccept    = "Accept: image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
	documentAccept = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
	evil           = "https://evil.example"
)

// TestPageNextDoor replays what a browser sends when a page of another site, or
// a name rebound to this server's address, tries to start or stop an agent.
func TestPageNextDoor(t *testing.T) {
	s := start(t)
	port := s.url[strings.LastIndex(s.url, ":"):]
	stream := "/run/stream?prompt=" + url.QueryEscape(promptOf(text("started by a page")))
	run := specJSON(t, spec(text("started by a page")))
	form := url.Values{"prompt": {"started by a page"}}.Encode()
	// A form with enctype text/plain sends name=value: JSON with a "=" inside.
	trick := `{"prompt":"started by a page","metadata":{"a":"=b"}}` + "\r\n"
	rebound := "Host: rebound.example" + port
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		code                     string
	}{
		{"image tag", "GET", stream, "", trusted("cross-site", "no-cors", "image", imageAccept, "Referer: "+evil+"/"), 403, "forbidden"},
		{"image tag of a page on another port", "GET", stream, "", trusted("same-site", "no-cors", "image", imageAccept, "Referer: http://127.0.0.1:3000/"), 403, "forbidden"},
		{"script tag", "GET", stream, "", trusted("cross-site", "no-cors", "script", "Accept: */*"), 403, "forbidden"},
		{"link, window.open or redirect", "GET", stream, "", trusted("cross-site", "navigate", "document", documentAccept, "Sec-Fetch-User: ?1", "Upgrade-Insecure-Requests: 1"), 403, "forbidden"},
		{"EventSource", "GET", stream, "", trusted("cross-site", "cors", "empty", "Accept: text/event-stream", "Cache-Control: no-cache", "Origin: "+evil), 403, "forbidden"},
		{"prefetch", "GET", stream, "", trusted("cross-site", "no-cors", "empty", "Sec-Purpose: prefetch"), 403, "forbidden"},
		{"image tag, no fetch metadata", "GET", stream, "", chrome(imageAccept, "Referer: http://evil.example/"), 403, "forbidden"},
		{"form", "POST", "/run", form, trusted("cross-site", "navigate", "document", documentAccept, "Content-Type: application/x-www-form-urlencoded", "Origin: "+evil, "Cache-Control: max-age=0", "Sec-Fetch-User: ?1", "Upgrade-Insecure-Requests: 1"), 403, "forbidden"},
		{"form of an opaque origin", "POST", "/run/async", trick, trusted("cross-site", "navigate", "iframe", documentAccept, "Content-Type: text/plain", "Origin: null"), 403, "forbidden"},
		{"form, no fetch metadata", "POST", "/run", trick, chrome(documentAccept, "Content-Type: text/plain", "Origin: http://evil.example"), 403, "forbidden"},
		{"form of the same origin", "POST", "/run", form, trusted("same-origin", "navigate", "document", documentAccept, "Content-Type: application/x-www-form-urlencoded", "Origin: "+s.url), 415, "unsupported_media"},
		{"multipart form", "POST", "/run", "--b\r\n\r\n--b--", trusted("none", "navigate", "document", "Content-Type: multipart/form-data; boundary=b"), 415, "unsupported_media"},
		{"fetch no-cors", "POST", "/run/async", run, trusted("cross-site", "no-cors", "empty", "Accept: */*", "Content-Type: text/plain;charset=UTF-8", "Origin: "+evil), 403, "forbidden"},
		{"fetch no-cors to the stream", "POST", "/run/stream", run, trusted("same-site", "no-cors", "empty", "Accept: */*", "Content-Type: text/plain;charset=UTF-8", "Origin: http://127.0.0.1:3000"), 403, "forbidden"},
		{"sendBeacon", "POST", "/run/async", run, trusted("cross-site", "no-cors", "empty", "Content-Type: application/x-www-form-urlencoded;charset=UTF-8", "Origin: "+evil), 403, "forbidden"},
		{"fetch cors whose preflight was skipped", "POST", "/run", run, trusted("cross-site", "cors", "empty", "Content-Type: application/json", "Origin: "+evil), 403, "forbidden"},
		{"preflight", "OPTIONS", "/run", "", trusted("cross-site", "cors", "empty", "Origin: "+evil, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type", "Access-Control-Request-Private-Network: true"), 405, "method_not_allowed"},
		{"rebound name, image tag", "GET", stream, "", chrome(rebound, imageAccept), 421, "unknown_host"},
		{"rebound name, fetch", "POST", "/run", run, chrome(rebound, "Content-Type: application/json", "Origin: http://rebound.example"+port), 421, "unknown_host"},
		{"rebound name that claims to be trusted", "POST", "/run", run, trusted("same-origin", "cors", "empty", rebound, "Content-Type: application/json", "Origin: http://rebound.example"+port), 421, "unknown_host"},
		{"rebound name, reading", "GET", "/jobs", "", chrome(rebound), 421, "unknown_host"},
		{"a name that begins like an address", "POST", "/run", run, chrome("Host: 127.0.0.1.rebound.example"+port, "Content-Type: application/json"), 421, "unknown_host"},
		{"a name that begins like localhost", "POST", "/run", run, chrome("Host: localhost.rebound.example"+port, "Content-Type: application/json"), 421, "unknown_host"},
		{"the unspecified address", "POST", "/run", run, chrome("Host: 0.0.0.0"+port, "Content-Type: application/json"), 421, "unknown_host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.send(t, c.method, c.path, c.body, c.headers...)
			a.refused(t, c.status, c.code, "")
			for name := range a.header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("the answer carries %s: %s", name, a.header.Get(name))
				}
			}
		})
	}
	s.idle(t)

	// The same requests, but for what gives the page away, do start an agent.
	id := s.submit(t, spec(bash(stayCommand("page-next-door"))))
	job := "/jobs/" + id
	s.send(t, http.MethodDelete, job, "", trusted("cross-site", "cors", "empty", "Origin: "+evil)...).refused(t, 403, "forbidden", "")
	s.send(t, http.MethodDelete, job, "", chrome(rebound)...).refused(t, 421, "unknown_host", "")
	if j, err := s.c.Job(s.ctx(), id); err != nil || j.Phase == stromboli.PhaseCancelling || j.Status.Terminal() {
		t.Errorf("a page stopped the run: %+v, %v", j, err)
	}
	s.send(t, http.MethodDelete, job, "", trusted("same-origin", "cors", "empty", "Origin: "+s.url)...).want(t, http.StatusOK)
	s.await(t, id).want(t, stromboli.Cancelled, stromboli.ReasonRequest)
	for _, headers := range [][]string{
		trusted("same-origin", "cors", "empty", "Content-Type: application/json", "Origin: "+s.url),
		trusted("none", "navigate", "document", "Content-Type: application/json", "Host: localhost"+port),
	} {
		o := s.send(t, http.MethodPost, "/run", run, headers...).want(t, http.StatusOK).object(t)
		if o["output"] != "started by a page" {
			t.Errorf("the control's output is %v", o["output"])
		}
	}
}
