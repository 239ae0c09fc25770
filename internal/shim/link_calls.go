package shim

import (
	"encoding/json"
	"io"
	"sync"
)

// request carries out one call of the server's. What can take time runs beside
// the reading of further frames.
func (l *link) request(req request) {
	switch req.Op {
	case opStart:
		if req.Start == nil {
			break
		}
		l.answer(req.ID, nil, l.in.agent.start(*req.Start))
		return
	case opHook:
		if req.Hook == nil {
			break
		}
		l.answer(req.ID, nil, l.in.agent.startHook(*req.Hook))
		return
	case opStop:
		if req.Stop == nil {
			break
		}
		l.in.agent.requestStop(*req.Stop)
		l.answer(req.ID, nil, nil)
		return
	case opCloseStdin:
		stdin, err := l.in.agent.input()
		if err == nil {
			stdin.close()
		}
		l.answer(req.ID, nil, err)
		return
	case opExit:
		l.answer(req.ID, nil, nil)
		select {
		case <-l.in.exit:
		default:
			close(l.in.exit)
		}
		return
	case opWriteFile, opReadFile, opMounts, opAttest, opMakeDir:
		if req.File == nil {
			break
		}
		l.fileCall(req)
		return
	default: // a newer server's, or garbage
	}
	l.answer(req.ID, nil, remotef(CodeInvalid, "unknown or incomplete request %q", req.Op))
}

// answer ends a call. If it can't be sent the connection is over, and the
// server asks again.
func (l *link) answer(id uint64, result any, err error) {
	resp := response{ID: id}
	if err != nil {
		resp.Error = remoteOf(err)
	} else if result != nil {
		resp.Result, _ = json.Marshal(result) // plain structs can't fail
	}
	_ = l.send(putJSON(frameResponse, resp))
}

// stdin has a frame written and answers when it is recorded.
func (l *link) stdin(call, id uint64, data []byte) {
	w, err := l.in.agent.input()
	if err != nil {
		l.answer(call, nil, err)
		return
	}
	f, err := w.put(id, data)
	if err != nil || f == nil {
		l.answer(call, nil, err)
		return
	}
	l.work.Go(func() {
		select {
		case <-f.ready:
			l.answer(call, nil, f.err)
		case <-l.done:
		}
	})
}

// fileCall is a call that moves a file or looks at mounts, through a helper.
type fileCall struct {
	id   uint64
	in   chan fileFrame // one slot: each side waits for the other's answer
	stop chan struct{}
	once sync.Once
}

type fileFrame struct {
	t    frameType
	data []byte
}

func (c *fileCall) cancel() { c.once.Do(func() { close(c.stop) }) }

// deliver hands a frame to the call; one too many ends the call.
func (c *fileCall) deliver(t frameType, data []byte) {
	if t == frameCancel {
		c.cancel()
		return
	}
	select {
	case c.in <- fileFrame{t, data}:
	default:
		c.cancel()
	}
}

// next returns the server's next frame; false when nobody waits any more.
func (c *fileCall) next() (fileFrame, bool) {
	select {
	case f := <-c.in:
		return f, true
	case <-c.stop:
		return fileFrame{}, false
	}
}

func (l *link) fileCall(req request) {
	c := &fileCall{id: req.ID, in: make(chan fileFrame, 1), stop: make(chan struct{})}
	l.mu.Lock()
	_, twice := l.calls[req.ID]
	if !twice {
		l.calls[req.ID] = c
	}
	l.mu.Unlock()
	if twice {
		_ = l.conn.Close() // two calls of one id: nothing can be answered
		return
	}
	// Not part of the link's work: a helper that hangs in the kernel must not
	// keep us from dialling again. Their number is bounded.
	go func() {
		result, err := l.help(c, req)
		l.mu.Lock()
		delete(l.calls, req.ID)
		l.mu.Unlock()
		l.answer(req.ID, result, err)
	}()
}

// help runs one helper from its start to its end.
func (l *link) help(c *fileCall, req request) (any, error) {
	if err := checkIDs(req.File.UID, req.File.GID); err != nil {
		return nil, err
	}
	if req.Op == opMounts && len(req.File.Targets) == 0 {
		return []MountStat{}, nil
	}
	p, err := l.in.helpers.start(req.Op, *req.File)
	if err != nil {
		return nil, err
	}
	defer l.in.helpers.release()
	// Killing it ends every read and write below.
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-c.stop:
			p.abort()
		case <-ended:
		}
	})
	defer watch.Wait()
	defer close(ended)
	switch req.Op {
	case opWriteFile:
		return nil, l.receiveFile(c, p)
	case opReadFile:
		return nil, l.sendFile(c, p)
	case opAttest:
		var facts Facts
		return told(p, &facts)
	case opMakeDir:
		return nil, p.wait()
	default:
		var stats []MountStat
		return told(p, &stats)
	}
}

// receiveFile passes the server's bytes to the helper, asking for each chunk
// once the last has been taken.
func (l *link) receiveFile(c *fileCall, p *helperProcess) error {
	for {
		if l.send(putFrame(frameMore, putUint(c.id))) != nil {
			p.abort()
			return p.wait()
		}
		f, ok := c.next()
		if !ok || (f.t != frameData && f.t != frameEnd) || len(f.data) > fileChunk {
			p.abort()
			return p.wait()
		}
		if f.t == frameData && len(f.data) == 0 {
			continue // would be taken for the end
		}
		if p.chunk(f.data) != nil || f.t == frameEnd {
			return p.wait() // a failed write has its reason there
		}
	}
}

// sendFile passes the helper's bytes to the server.
func (l *link) sendFile(c *fileCall, p *helperProcess) error {
	buf := make([]byte, fileChunk)
	for {
		n, err := io.ReadFull(p.out, buf)
		if n > 0 {
			if l.send(putFrame(frameData, putUint(c.id), buf[:n])) != nil {
				p.abort()
			} else if f, ok := c.next(); !ok || f.t != frameMore {
				p.abort()
			}
		}
		if err != nil {
			return p.wait()
		}
	}
}

// told returns what a helper has found out.
func told[T any](p *helperProcess, what *T) (any, error) {
	err := json.NewDecoder(io.LimitReader(p.out, maxFrame/2)).Decode(what)
	if err != nil {
		p.abort()
	}
	if werr := p.wait(); werr != nil {
		return nil, werr
	}
	return what, err
}
