package egress

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// streamConn is a connection whose sending side can be closed alone.
type streamConn interface {
	net.Conn
	CloseWrite() error
}

// relay passes bytes both ways until both sides have ended, one has failed, or
// nothing has moved in either direction for idle. It closes both connections.
// Between TCP and unix sockets the bytes stay in the kernel (splice). It returns
// how many bytes each side was given.
func relay(a, b streamConn, idle time.Duration) (toA, toB int64) {
	r := &relaying{idle: idle, start: time.Now()}
	closeBoth := sync.OnceFunc(func() {
		_ = a.Close()
		_ = b.Close()
	})
	defer closeBoth()
	var wg sync.WaitGroup
	for _, d := range [2]struct {
		dst, src streamConn
		n        *int64
	}{{a, b, &toA}, {b, a, &toB}} {
		wg.Go(func() {
			if err := r.copy(d.dst, d.src, d.n); err != nil {
				closeBoth() // the other direction has no use any more
				return
			}
			_ = d.dst.CloseWrite()
		})
	}
	wg.Wait()
	return toA, toB
}

// relaying is what both directions know of each other.
type relaying struct {
	idle  time.Duration
	start time.Time
	last  atomic.Int64 // since start, when bytes were last known to have moved
}

// copy passes src to dst until its end, which is nil. It looks up every quarter
// of the idle time: a splice tells how much it moved only when it returns. total
// is what has been moved.
func (r *relaying) copy(dst, src streamConn, total *int64) error {
	for {
		if err := src.SetReadDeadline(time.Now().Add(r.idle / 4)); err != nil {
			return err //nolint:wrapcheck // only its being there matters
		}
		n, err := io.Copy(dst, src)
		*total += n
		now := time.Since(r.start)
		if n > 0 {
			r.last.Store(int64(now))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err //nolint:wrapcheck // see above
		}
		if now-time.Duration(r.last.Load()) >= r.idle {
			return err //nolint:wrapcheck // see above
		}
	}
}
