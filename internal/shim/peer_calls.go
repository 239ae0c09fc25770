package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
)

// call is a request that waits for its answer.
type call struct {
	frame  []byte
	stream bool            // more than one answer; not repeated after a reconnect
	ch     chan callResult // room for one data frame and the end
	final  bool            // the end is in ch
}

// callResult is the end of a call, or one frame of a stream.
type callResult struct {
	frame  frameType // frameData or frameMore; 0: the end
	data   []byte
	result json.RawMessage
	err    error
}

// finish ends the call; the Peer's lock is held.
func (c *call) finish(res callResult) {
	if !c.final {
		c.final = true
		c.ch <- res // there is room: a stream has at most one frame under way
	}
}

// begin registers a call and has it sent, now or by the next connection.
func (p *Peer) begin(stream bool, frame func(id uint64) []byte) (uint64, *call, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, nil, p.err
	}
	if stream && p.conn == nil {
		return 0, nil, ErrInterrupted
	}
	p.lastID++
	id := p.lastID
	b := frame(id)
	if len(b) > maxFrame {
		return 0, nil, remotef(CodeInvalid, "request of %d bytes", len(b))
	}
	c := &call{frame: b, stream: stream, ch: make(chan callResult, 2)}
	p.calls[id] = c
	p.push(c.frame)
	return id, c, nil
}

// push queues a frame on the present connection; mu is held.
func (p *Peer) push(frame []byte) {
	if p.conn != nil {
		p.conn.out = append(p.conn.out, frame)
		p.conn.nudge()
	}
}

// pendingCalls returns the calls to be repeated, in their order; mu is held.
func (p *Peer) pendingCalls() []*call {
	ids := make([]uint64, 0, len(p.calls))
	for id, c := range p.calls {
		if !c.stream {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	calls := make([]*call, len(ids))
	for i, id := range ids {
		calls[i] = p.calls[id]
	}
	return calls
}

// failStreams ends the calls that can't be repeated; mu is held.
func (p *Peer) failStreams() {
	for id, c := range p.calls {
		if c.stream {
			delete(p.calls, id)
			c.finish(callResult{err: ErrInterrupted})
		}
	}
}

// deliver hands an answer to its call. Answers that nobody waits for are those
// of cancelled calls.
func (p *Peer) deliver(c *peerConn, id uint64, res callResult, end bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	call := p.calls[id]
	if call == nil || p.conn != c {
		return nil
	}
	if end {
		delete(p.calls, id)
		call.finish(res)
		return nil
	}
	if !call.stream || len(call.ch) > 0 {
		return fmt.Errorf("%w: unasked data for call %d", errProtocol, id)
	}
	call.ch <- res
	return nil
}

// await waits for the next answer to a call; when ctx ends first the call is
// given up.
func (p *Peer) await(ctx context.Context, id uint64, c *call) (callResult, error) {
	select {
	case res := <-c.ch:
		return res, res.err
	case <-ctx.Done():
		p.abandon(id)
		return callResult{}, ctx.Err()
	}
}

// abandon forgets a call, and tells the shim if it has work under way for it.
func (p *Peer) abandon(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.calls[id]; c != nil {
		delete(p.calls, id)
		p.push(putFrame(frameCancel, putUint(id)))
	}
}

func (p *Peer) call(ctx context.Context, req request) (json.RawMessage, error) {
	id, c, err := p.begin(false, func(id uint64) []byte {
		req.ID = id
		return putJSON(frameRequest, req)
	})
	if err != nil {
		return nil, err
	}
	res, err := p.await(ctx, id, c)
	return res.result, err
}

// Start starts the agent. Starting a started process of the same ID again is
// success, whatever else is in proc.
func (p *Peer) Start(ctx context.Context, proc Process) error {
	_, err := p.call(ctx, request{Op: opStart, Start: &proc})
	return err
}

// Hook starts a hook, before the agent. Its start, output and end are lines.
// Starting a hook of the same ID again is success. CodeStart where its shell
// can't be started, which has a start and an end all the same. CodeConflict where another is
// at work, the agent was started, or a stop came first.
func (p *Peer) Hook(ctx context.Context, h Hook) error {
	_, err := p.call(ctx, request{Op: opHook, Hook: &h})
	return err
}

// MaxStdin is the largest frame to stdin.
const MaxStdin = 8 << 20

// Stdin writes data, at most 8 MiB, to the agent's stdin. Frames have the ids
// 1, 2, 3, …; a frame of an id is written once however often it is sent. On
// return it has been written whole and recorded.
func (p *Peer) Stdin(ctx context.Context, id uint64, data []byte) error {
	if len(data) > MaxStdin {
		return remotef(CodeInvalid, "stdin frame of %d bytes", len(data))
	}
	callID, c, err := p.begin(false, func(callID uint64) []byte {
		return putFrame(frameStdin, putUint(callID), putUint(id), data)
	})
	if err != nil {
		return err
	}
	_, err = p.await(ctx, callID, c)
	return err
}

// CloseStdin closes the agent's stdin after what was sent before. Closing it
// again is success.
func (p *Peer) CloseStdin(ctx context.Context) error {
	_, err := p.call(ctx, request{Op: opCloseStdin})
	return err
}

// Stop arms the agent's end by the shim's own clock; it is carried out though
// the server should die. Called again it can only make the end come earlier.
// Before Start it forbids the start.
func (p *Peer) Stop(ctx context.Context, req StopRequest) error {
	_, err := p.call(ctx, request{Op: opStop, Stop: &req})
	return err
}

// Exit discards the sandbox: everything in it is killed and its spool is gone.
// A sandbox that is gone already is success. Afterwards everything returns
// ErrGone.
func (p *Peer) Exit(ctx context.Context) error {
	_, err := p.call(ctx, request{Op: opExit})
	if err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	p.end(ErrGone)
	return nil
}

// Mounts tells what the targets are in the sandbox: as its root sees them, and
// where root may not look as uid sees them.
func (p *Peer) Mounts(ctx context.Context, targets []string, uid, gid int) ([]MountStat, error) {
	b, err := p.call(ctx, request{Op: opMounts, File: &fileRequest{Targets: targets, UID: uid, GID: gid}})
	if err != nil {
		return nil, err
	}
	var stats []MountStat
	if err := json.Unmarshal(b, &stats); err != nil {
		return nil, fmt.Errorf("mounts: malformed answer: %w", err)
	}
	if len(stats) != len(targets) {
		return nil, fmt.Errorf("mounts: %d answers to %d questions", len(stats), len(targets))
	}
	return stats, nil
}

// Attest tells what is in force in the sandbox, for uid and gid as the agent's,
// and what the targets are, as Mounts does.
func (p *Peer) Attest(ctx context.Context, targets []string, uid, gid int) (Facts, error) {
	var f Facts
	b, err := p.call(ctx, request{Op: opAttest, File: &fileRequest{Targets: targets, UID: uid, GID: gid}})
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("attest: malformed answer: %w", err)
	}
	if len(f.Targets) != len(targets) {
		return f, fmt.Errorf("attest: %d answers to %d questions", len(f.Targets), len(targets))
	}
	return f, nil
}

// MakeDir makes a directory in the sandbox as uid and gid, and its missing
// parents. One that is there is success.
func (p *Peer) MakeDir(ctx context.Context, path string, uid, gid int) error {
	_, err := p.call(ctx, request{Op: opMakeDir, File: &fileRequest{Path: path, UID: uid, GID: gid}})
	return err
}

// WriteFile replaces a file in the sandbox as uid and gid, making its missing
// parents: whole or not at all, and synced on return. A cut connection is
// repeated if r is an io.Seeker, else it is ErrInterrupted.
func (p *Peer) WriteFile(ctx context.Context, path string, uid, gid int, mode fs.FileMode, r io.Reader) error {
	req := request{Op: opWriteFile, File: &fileRequest{Path: path, UID: uid, GID: gid, Mode: uint32(mode.Perm())}}
	for {
		err := p.writeOnce(ctx, req, r)
		s, ok := r.(io.Seeker)
		if !ok || !interrupted(err) || !wait(ctx, retryLast) {
			return err
		}
		if _, serr := s.Seek(0, io.SeekStart); serr != nil {
			return errors.Join(err, serr)
		}
	}
}

func (p *Peer) writeOnce(ctx context.Context, req request, r io.Reader) error {
	if err := p.waitConnected(ctx); err != nil {
		return err
	}
	id, c, err := p.begin(true, func(id uint64) []byte { req.ID = id; return putJSON(frameRequest, req) })
	if err != nil {
		return err
	}
	buf := make([]byte, fileChunk)
	for {
		res, err := p.await(ctx, id, c)
		if err != nil || res.frame == 0 {
			return err
		}
		n, err := io.ReadFull(r, buf)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			p.abandon(id)
			return fmt.Errorf("write %s: source: %w", req.File.Path, err)
		}
		if n > 0 {
			p.pushFor(id, putFrame(frameData, putUint(id), buf[:n]))
		} else {
			p.pushFor(id, putFrame(frameEnd, putUint(id)))
		}
	}
}

// ReadFile copies a regular file of at most limit bytes from the sandbox to w,
// reading as uid and gid. A connection that is cut before anything came is
// repeated, else it is ErrInterrupted. What w got before an error is void.
func (p *Peer) ReadFile(ctx context.Context, path string, uid, gid int, w io.Writer, limit int64) error {
	req := request{Op: opReadFile, File: &fileRequest{Path: path, UID: uid, GID: gid, Limit: limit}}
	for {
		n, err := p.readOnce(ctx, req, w)
		if n > 0 || !interrupted(err) || !wait(ctx, retryLast) {
			return err
		}
	}
}

func (p *Peer) readOnce(ctx context.Context, req request, w io.Writer) (int64, error) {
	if err := p.waitConnected(ctx); err != nil {
		return 0, err
	}
	id, c, err := p.begin(true, func(id uint64) []byte { req.ID = id; return putJSON(frameRequest, req) })
	if err != nil {
		return 0, err
	}
	var total int64
	for {
		res, err := p.await(ctx, id, c)
		if err != nil || res.frame == 0 {
			return total, err
		}
		n, err := w.Write(res.data)
		total += int64(n)
		if err == nil && total > req.File.Limit {
			err = remotef(CodeTooLarge, "read %s: larger than %d bytes", req.File.Path, req.File.Limit)
		}
		if err != nil {
			p.abandon(id)
			return total, err
		}
		p.pushFor(id, putFrame(frameMore, putUint(id)))
	}
}

// pushFor queues a frame of a call that is still under way.
func (p *Peer) pushFor(id uint64, frame []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.calls[id] != nil {
		p.push(frame)
	}
}

// waitConnected waits until a shim is there.
func (p *Peer) waitConnected(ctx context.Context) error {
	for {
		p.mu.Lock()
		err, here, wake := p.err, p.conn != nil, p.wake
		p.mu.Unlock()
		if err != nil || here {
			return err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// interrupted reports whether a file's way was cut by something that may be
// different the next time.
func interrupted(err error) bool {
	re, ok := errors.AsType[*RemoteError](err)
	return errors.Is(err, ErrInterrupted) || (ok && re.Code == CodeInterrupted)
}
