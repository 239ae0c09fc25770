package egress

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/unixsock"
)

const (
	preamble      = "STROMBOLI/1 "
	maxConns      = 1024 // of one sandbox
	maxHeader     = 64 << 10
	preambleLimit = 10 * time.Second
	peerLimit     = 30 * time.Second // for the peer's uid to become known
	headerLimit   = 30 * time.Second
	keepAlive     = 5 * time.Minute
)

// door is one sandbox's socket with all its connections.
type door struct {
	log    *slog.Logger
	server *http.Server
	ctx    context.Context //nolint:containedctx // the door's life: connections are older than any request
	cancel context.CancelFunc
	ready  chan net.Conn // proven connections, on their way to server
	noMore chan struct{} // closed when server takes no more of them
	noOnce sync.Once
	slots  chan struct{}
	wg     sync.WaitGroup
	asked  sync.WaitGroup // requests being answered
	closed func()         // what else goes with the sandbox
	leaves chan struct{}  // closed when a successor serves the sandbox
	leave  sync.Once
	audit  *audit
	spans  exports

	mu      sync.Mutex
	reg     Sandbox
	rules   *rules
	flows   map[*flow]struct{}
	changed chan struct{} // closed when reg changes
	socket  *net.UnixListener
	inode   fileID
	conns   map[*conn]struct{}
}

// fileID tells whether a path still names the socket that was bound there.
type fileID struct{ dev, ino uint64 }

func newDoor(reg Sandbox, records *audit, limit int, log *slog.Logger) *door {
	ctx, cancel := context.WithCancel(context.Background()) // ended by close
	return &door{
		log: log.With("sandbox", reg.ID), ctx: ctx, cancel: cancel, reg: reg,
		ready: make(chan net.Conn), noMore: make(chan struct{}), leaves: make(chan struct{}), slots: make(chan struct{}, limit),
		changed: make(chan struct{}), conns: map[*conn]struct{}{}, flows: map[*flow]struct{}{}, audit: records,
		rules: &rules{mode: stromboli.NetworkNone},
	}
}

// serve starts answering with h those whose headers come in time; register must
// follow.
func (d *door) serve(h http.Handler, headers time.Duration) {
	d.server = &http.Server{
		Handler:           d.counted(h),
		ReadHeaderTimeout: headers,
		IdleTimeout:       keepAlive,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return d.ctx },
	}
	d.wg.Go(func() { _ = d.server.Serve(doorListener{d}) })
}

// counted lets close wait for the requests that are being answered.
func (d *door) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		if d.ctx.Err() != nil { // close counts no more
			d.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		d.asked.Add(1)
		d.mu.Unlock()
		defer d.asked.Done()
		h.ServeHTTP(w, r)
	})
}

// register makes reg hold, for open connections too, and listens where it says
// unless the socket there is this door's already. It returns what it has cut.
func (d *door) register(reg Sandbox) (cut []*flow, err error) {
	r, err := compileSandbox(reg)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return nil, fmt.Errorf("sandbox %s was closed", reg.ID)
	}
	if d.reg.Tenant != reg.Tenant {
		return nil, fmt.Errorf("sandbox %s belongs to another tenant", reg.ID)
	}
	cut = d.govern(r) // before anybody can come in
	id, err := statSocket(reg.Socket)
	if d.socket == nil || d.reg.Socket != reg.Socket || err != nil || id != d.inode {
		l, err := unixsock.Listen(reg.Socket)
		if err != nil {
			return cut, fmt.Errorf("sandbox %s: %w", reg.ID, err)
		}
		if d.inode, err = statSocket(reg.Socket); err != nil {
			_ = l.Close()
			return cut, fmt.Errorf("sandbox %s: %w", reg.ID, err)
		}
		if d.socket != nil {
			_ = d.socket.Close()
		}
		d.socket = l
		d.wg.Go(func() { d.accept(l) })
	}
	d.reg = reg
	close(d.changed)
	d.changed = make(chan struct{})
	return cut, nil
}

func statSocket(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{dev: uint64(st.Dev), ino: st.Ino}, nil //nolint:unconvert // dev is narrower on some platforms
}

// accept takes connections while there are slots; above that they wait in the
// kernel, and only this sandbox waits.
func (d *door) accept(l *net.UnixListener) {
	for {
		select {
		case d.slots <- struct{}{}:
		case <-d.ctx.Done():
			return
		}
		uc, err := l.AcceptUnix()
		if err != nil {
			<-d.slots
			if errors.Is(err, net.ErrClosed) || !sleep(d.ctx, 50*time.Millisecond) {
				return
			}
			continue // out of descriptors, perhaps
		}
		c := &conn{UnixConn: uc, door: d}
		d.mu.Lock()
		d.conns[c] = struct{}{}
		d.mu.Unlock()
		if d.ctx.Err() != nil { // close may have looked before this one was there
			_ = c.Close()
			return
		}
		d.wg.Go(func() { d.admit(c) })
	}
}

// admit lets a connection in once it has proven who it is.
func (d *door) admit(c *conn) {
	if err := d.prove(c); err != nil {
		d.log.Debug("egress: connection refused", "error", err)
		_ = c.Close()
		return
	}
	select {
	case d.ready <- c:
	case <-d.noMore:
		_ = c.Close()
	}
}

func (d *door) prove(c *conn) error {
	cred, err := unixsock.PeerCred(c.UnixConn)
	if err != nil {
		return err //nolint:wrapcheck // says all
	}
	reg, err := d.knownPeer(cred.UID)
	if err != nil {
		return err
	}
	// Exactly as many bytes as are right, so that none of what follows is read
	// here and the bare connection can be passed on.
	want := []byte(preamble + reg.Token + "\n")
	got := make([]byte, len(want))
	if err := c.SetReadDeadline(time.Now().Add(preambleLimit)); err != nil {
		return fmt.Errorf("preamble: %w", err)
	}
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("preamble: %w", err)
	}
	if subtle.ConstantTimeCompare(got, want) != 1 {
		return errors.New("preamble: wrong token")
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("preamble: %w", err)
	}
	return nil
}

// knownPeer returns the registration by which uid may speak.
func (d *door) knownPeer(uid uint32) (Sandbox, error) {
	limit := time.NewTimer(peerLimit)
	defer limit.Stop()
	for {
		d.mu.Lock()
		reg, changed := d.reg, d.changed
		d.mu.Unlock()
		switch reg.judgePeer(uid) {
		case peerTaken:
			return reg, nil
		case peerRefused:
			return Sandbox{}, fmt.Errorf("peer: uid %d may not speak here", uid)
		case peerUnknown:
		}
		select {
		case <-changed:
		case <-limit.C:
			return Sandbox{}, errors.New("peer: its uid did not become known")
		case <-d.ctx.Done():
			return Sandbox{}, d.ctx.Err() //nolint:wrapcheck // says all
		}
	}
}

// stopListening lets no new connection in; those there are go on.
func (d *door) stopListening() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.socket != nil {
		_ = d.socket.Close()
	}
}

// drain waits until no request and no tunnel is left, or ctx ends.
func (d *door) drain(ctx context.Context) {
	d.leave.Do(func() { close(d.leaves) })
	_ = d.server.Shutdown(ctx) // closes idle connections, knows no tunnels
	for d.open() > 0 && sleep(ctx, 50*time.Millisecond) {
	}
}

func (d *door) id() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reg.ID
}

func (d *door) runID() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reg.RunID
}

func (d *door) tenant() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reg.Tenant
}

func (d *door) open() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns)
}

// close ends everything of the sandbox and waits for it.
func (d *door) close() {
	d.cancel()
	d.stopListening()
	_ = d.server.Close()
	d.mu.Lock()
	open := make([]*conn, 0, len(d.conns))
	for c := range d.conns {
		open = append(open, c)
	}
	d.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
	d.asked.Wait()
	d.wg.Wait()
	if d.closed != nil {
		d.closed()
	}
}

// conn is one connection of a sandbox; closing it gives its slot back.
type conn struct {
	*net.UnixConn
	door *door
	once sync.Once
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.door.mu.Lock()
		delete(c.door.conns, c)
		c.door.mu.Unlock()
		<-c.door.slots
	})
	return c.UnixConn.Close() //nolint:wrapcheck // net.Conn's own error
}

// doorListener gives proven connections to net/http.
type doorListener struct{ d *door }

// Accept implements net.Listener.
func (l doorListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.d.ready:
		return c, nil
	case <-l.d.noMore:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l doorListener) Close() error {
	l.d.noOnce.Do(func() { close(l.d.noMore) })
	return nil
}

// Addr implements net.Listener.
func (l doorListener) Addr() net.Addr { return &net.UnixAddr{Name: "sandbox", Net: "unix"} }
