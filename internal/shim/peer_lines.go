package shim

import (
	"context"
	"fmt"
	"slices"
)

// maxBatch bounds the bytes that Next returns, give or take one line.
const maxBatch = 4 << 20

// Next returns lines with Seq above after, in order and without gaps: those
// that are there, at least one, at most max and about 4 MiB. It blocks until
// there is one. The lines stay until a later call asks for what comes after
// them, so asking again gives the same again; acknowledged lines may be gone
// for good. When the sandbox is gone it returns what had arrived, then ErrGone.
func (p *Peer) Next(ctx context.Context, after int64, max int) ([]Line, error) {
	if after < 0 || max < 1 {
		return nil, fmt.Errorf("next %d lines after %d: out of range", max, after)
	}
	for {
		p.mu.Lock()
		p.seek(after)
		batch := p.batch(max)
		err, wake := p.err, p.wake
		p.mu.Unlock()
		if len(batch) > 0 {
			return batch, nil
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Ack says that the lines up to seq are durable, so that the shim may forget
// them. It doesn't wait.
func (p *Peer) Ack(seq int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if seq > p.acked {
		p.acked = seq
		p.nudge()
	}
}

// seek moves the consumer's position; mu is held.
func (p *Peer) seek(after int64) {
	if !p.reading || after < p.base {
		p.reading, p.base = true, after
		p.lines, p.buffered = nil, 0
		p.gen++ // what is on its way belongs to another question
		p.nudge()
		return
	}
	p.base = after
	n := 0
	for n < len(p.lines) && p.lines[n].Seq <= after {
		p.buffered -= recordHeader + int64(len(p.lines[n].Data))
		n++
	}
	if n == 0 {
		return
	}
	clear(p.lines[:n]) // lets the lines' bytes go
	p.lines = p.lines[n:]
	if len(p.lines) == 0 {
		p.lines = nil
	}
	p.nudge()
}

// batch copies the first lines; mu is held.
func (p *Peer) batch(max int) []Line {
	n, size := 0, 0
	for n < len(p.lines) && n < max && (n == 0 || size < maxBatch) {
		size += len(p.lines[n].Data)
		n++
	}
	return slices.Clone(p.lines[:n])
}

// newest is the sequence of the newest line that needn't be sent again; mu is
// held.
func (p *Peer) newest() int64 {
	if n := len(p.lines); n > 0 {
		return p.lines[n-1].Seq
	}
	return p.base
}

// take stores a batch of lines from the shim.
func (p *Peer) take(c *peerConn, gen uint64, records []byte) error {
	lines, err := decodeRecords(records)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != c {
		return nil // replaced; the reader will notice
	}
	if c.received >= c.credit {
		return fmt.Errorf("%w: lines beyond the credit", errProtocol)
	}
	c.received += int64(len(records))
	if !p.reading || gen != p.gen {
		c.nudge() // stale; its credit is free again
		return nil
	}
	stored := false
	for _, l := range lines {
		if l.Seq <= p.newest() {
			continue // the consumer has skipped it
		}
		p.lines = append(p.lines, l)
		p.buffered += recordHeader + int64(len(l.Data))
		stored = true
	}
	if stored {
		p.broadcast()
	} else {
		c.nudge()
	}
	return nil
}

// nudge has the connection, if there is one, look for what is due; mu is held.
func (p *Peer) nudge() {
	if p.conn != nil {
		p.conn.nudge()
	}
}
