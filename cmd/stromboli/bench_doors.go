package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/egress"
	"github.com/tomblancdev/stromboli/internal/unixsock"
)

const benchDoors = 100

// doors is how much memory the server's egress takes with a hundred sandboxes,
// each of which has a tunnel to addr open.
func (s *benchServer) doors(ctx context.Context, addr string) (mib float64, err error) {
	control := egress.NewClient(filepath.Join(s.data, "egress"))
	dir, err := os.MkdirTemp(s.data, "doors")
	if err != nil {
		return 0, err
	}
	token := stromboli.NewToken()
	var open []net.Conn
	defer func() {
		for i, c := range open {
			err = errors.Join(err, c.Close(), control.Remove(ctx, "bench-"+strconv.Itoa(i)))
		}
	}()
	for i := range benchDoors {
		door := egress.Sandbox{
			ID: "bench-" + strconv.Itoa(i), Socket: filepath.Join(dir, strconv.Itoa(i)), Token: token,
			PeerUID: uint32(os.Getuid()), HasPeerUID: true, Network: stromboli.Network{Mode: stromboli.NetworkOpen}, //nolint:gosec // a uid
		}
		if err := control.Add(ctx, door); err != nil {
			return 0, err
		}
		conn, err := unixsock.Dial(ctx, door.Socket)
		if err != nil {
			return 0, err
		}
		open = append(open, conn)
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := fmt.Fprintf(conn, "STROMBOLI/1 %s\nCONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", token, addr, addr); err != nil {
			return 0, err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil) //nolint:bodyclose // a tunnel
		if err != nil || resp.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("tunnel %d: %w", i, errors.Join(err, errNoTunnel))
		}
	}
	pid, err := egressPID(ctx, s.data)
	if err != nil {
		return 0, err
	}
	return pss(pid)
}

var errNoTunnel = errors.New("not opened")
