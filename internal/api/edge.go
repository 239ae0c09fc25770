package api

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// hostList are the hosts that requests may be addressed to by name. Against a
// page that rebinds its own name to this server's address, the name in the
// Host header is all that gives it away.
type hostList []hostPort

type hostPort struct{ name, port string }

func newHostList(entries []string) (hostList, error) {
	var l hostList
	for _, e := range entries {
		hp, ok := splitHost(strings.TrimSpace(e))
		if !ok {
			return nil, fmt.Errorf("allowed host %q is not a host or host:port", e)
		}
		l = append(l, hp)
	}
	return l, nil
}

// check passes loopback, the address that the connection came in on, and the
// list. The port is compared only where the list names one: tunnels and
// published ports change it, and a rebound name can't use it.
func (l hostList) check(r *http.Request) error {
	refused := stromboli.Errorf(stromboli.UnknownHost,
		"this server does not answer to the host %q; add it to the allowed hosts if it should", clip(r.Host))
	hp, ok := splitHost(r.Host)
	if !ok {
		return refused
	}
	if hp.name == "localhost" {
		return nil
	}
	if addr, err := netip.ParseAddr(hp.name); err == nil {
		addr = addr.Unmap()
		if addr.IsLoopback() {
			return nil
		}
		if local, ok := localAddr(r); ok && addr == local {
			return nil
		}
	}
	for _, allowed := range l {
		if allowed.name == hp.name && (allowed.port == "" || allowed.port == hp.port) {
			return nil
		}
	}
	return refused
}

// splitHost takes "name", "name:port", "1.2.3.4:port", "[v6]" and "[v6]:port"
// apart; names are lower-cased and lose one trailing dot, addresses get their
// canonical form.
func splitHost(s string) (hostPort, bool) {
	host, port := s, ""
	switch {
	case strings.HasPrefix(s, "["):
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return hostPort{}, false
		}
		host = s[1:end]
		if rest := s[end+1:]; rest != "" {
			var ok bool
			if port, ok = strings.CutPrefix(rest, ":"); !ok {
				return hostPort{}, false
			}
		}
		addr, err := netip.ParseAddr(host)
		if err != nil || !addr.Is6() {
			return hostPort{}, false
		}
		host = addr.WithZone("").String()
	case strings.Count(s, ":") == 1:
		host, port, _ = strings.Cut(s, ":")
	case strings.Count(s, ":") > 1:
		return hostPort{}, false // an IPv6 address without brackets
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if port != "" {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return hostPort{}, false
		}
	}
	return hostPort{host, port}, host != ""
}

func localAddr(r *http.Request) (netip.Addr, bool) {
	tcp, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	return tcp.AddrPort().Addr().Unmap().WithZone(""), true
}

// checkOrigin refuses what a browser sends on behalf of another site. Clients
// outside browsers send none of these headers and pass.
//
// Browsers leave Sec-Fetch-Site out towards plain-HTTP addresses other than
// loopback, and send no Origin with a GET that they make for an image or a
// no-cors fetch. A GET that acts is therefore refused when it comes from a
// browser that does not say where it was made; POST always says.
func checkOrigin(r *http.Request) error {
	for _, site := range r.Header.Values("Sec-Fetch-Site") {
		if site != "same-origin" && site != "none" {
			return stromboli.Errorf(stromboli.Forbidden, "requests made by other sites (Sec-Fetch-Site: %s) are refused", clip(site))
		}
	}
	for _, origin := range r.Header.Values("Origin") {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return stromboli.Errorf(stromboli.Forbidden, "requests made by another origin (%s) are refused", clip(origin))
		}
	}
	silent := r.Header.Get("Sec-Fetch-Site") == "" && r.Header.Get("Origin") == ""
	safe := r.Method == http.MethodGet || r.Method == http.MethodHead
	if safe && silent && strings.HasPrefix(r.UserAgent(), "Mozilla/") {
		return stromboli.Errorf(stromboli.Forbidden,
			"a browser must say which site a request comes from (Sec-Fetch-Site or Origin); use POST, or HTTPS")
	}
	return nil
}

// checkContentType refuses a non-empty body that isn't declared as what the
// route takes, JSON or lines of JSON: the types that a page may send without
// asking first are all others.
func (a *API) checkContentType(rt route, w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	takes := []string{"application/json"}
	if rt.lines {
		takes = []string{"application/jsonl", "application/x-ndjson", "application/octet-stream"}
	}
	if types := r.Header.Values("Content-Type"); len(types) == 1 {
		if t, _, err := mime.ParseMediaType(types[0]); err == nil && slices.Contains(takes, t) {
			return nil
		}
	}
	if r.ContentLength < 0 { // of unknown length: it may be empty
		if _, err := io.ReadFull(r.Body, make([]byte, 1)); errors.Is(err, io.EOF) {
			a.bodyRead(w)
			r.Body = http.NoBody
			return nil
		}
	}
	if rt.lines {
		return stromboli.Errorf(stromboli.NotJSON, "the body must be lines of JSON, with Content-Type: %s", takes[0])
	}
	return stromboli.Errorf(stromboli.NotJSON, "the body must be JSON, with Content-Type: application/json")
}

// limitBody bounds the time for a request's body, also for one that nobody
// reads: the server itself reads a rest of it before the next request.
func (a *API) limitBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		a.readDeadline(w, time.Now().Add(a.cfg.BodyTimeout))
	}
}

// bodyRead lifts the limit once the body was read to its end, and only then.
// It must go before a long wait: the server watches the idle connection for
// the client's going away, and would take a passed deadline for that.
func (a *API) bodyRead(w http.ResponseWriter) { a.readDeadline(w, time.Time{}) }

// dropBody reads a body that means nothing.
func (a *API) dropBody(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength == 0 || r.Body == http.NoBody {
		return nil
	}
	_, err := a.readBody(w, r)
	return err
}

// lingerTime bounds the reading of a body that was refused.
const lingerTime = 2 * time.Second

// linger lets a client that closes its connection after this request read the
// answer: were what it still sends left unread, the kernel would reset the
// connection, and the answer could be lost. net/http takes care of the
// connections that were to be used again.
func (a *API) linger(w http.ResponseWriter, r *http.Request) {
	if !r.Close || r.ContentLength == 0 || r.Header.Get("Expect") != "" {
		return
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return
	}
	a.readDeadline(w, time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, r.Body) // at its end, at once
}

// readDeadline sets it; connections without one (in tests) need none.
func (a *API) readDeadline(w http.ResponseWriter, t time.Time) {
	err := http.NewResponseController(w).SetReadDeadline(t)
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		a.log.Debug("set a read deadline", "err", err)
	}
}
