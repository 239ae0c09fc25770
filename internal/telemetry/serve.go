package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// listenAgain is how often an address that is taken is tried again.
	listenAgain = 15 * time.Second
	// maxScrapes bounds the scrapes that are answered at a time.
	maxScrapes  = 4
	scrapeLimit = 10 * time.Second
)

// Serve answers /metrics at an address of its own until ctx ends, and nothing
// else there. An address that can't be listened on is told in the log and tried
// again: it must not keep the server from its runs. Serve returns nil.
func (m *Metrics) Serve(ctx context.Context, address string, log *slog.Logger) error {
	for told := false; ; told = true {
		err := m.listen(ctx, address, log)
		if err != nil && ctx.Err() == nil && !told {
			log.WarnContext(ctx, "metrics can't be served at an address of their own (STROMBOLI_METRICS_ADDRESS); it is tried again", "address", address, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(listenAgain):
		}
	}
}

// listen answers at an address until ctx ends.
func (m *Metrics) listen(ctx context.Context, address string, log *slog.Logger) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listening for scrapes: %w", err)
	}
	log.InfoContext(ctx, "metrics are served", "url", "http://"+ln.Addr().String()+"/metrics")
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	srv := &http.Server{
		Handler: fromHere(mux), ReadHeaderTimeout: scrapeLimit, ReadTimeout: scrapeLimit, WriteTimeout: scrapeLimit, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answering scrapes: %w", err)
	}
	return nil
}

// fromHere refuses, on connections to a loopback address, what is addressed to
// another name: a web page that has its own name resolve to this machine could
// read metrics by it.
func fromHere(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
		if ok && local.IP.IsLoopback() && !namesLoopback(r.Host) {
			http.Error(w, "this address answers to loopback names alone", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func namesLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}
