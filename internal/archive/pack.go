package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tomblancdev/stromboli"
)

const (
	// frameBytes is what a frame holds before it is compressed, one event more at
	// most. A page is read by whole frames: small ones cost space, large ones time.
	frameBytes = 256 << 10
	packEvents = 256 // events per read of the store
)

// packer reads a run's events from the store and gives them as an archive.
type packer struct {
	ctx    context.Context //nolint:containedctx // lives as long as one Put
	store  Store
	run    stromboli.FinishedRun
	zip    *zstd.Encoder
	frames []stromboli.ArchiveFrame // of what was given

	pos    int64             // the last event that is in a frame
	events []stromboli.Event // read, and not in a frame yet
	plain  bytes.Buffer
	out    []byte // what of the last frame wasn't given yet
	frame  []byte
	offset int64
	err    error
}

func newPacker(ctx context.Context, store Store, run stromboli.FinishedRun) (*packer, error) {
	zip, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &packer{ctx: ctx, store: store, run: run, zip: zip}, nil
}

// Read implements io.Reader.
func (p *packer) Read(b []byte) (int, error) {
	for len(p.out) == 0 && p.err == nil {
		p.err = p.next()
	}
	if len(p.out) == 0 {
		return 0, p.err
	}
	n := copy(b, p.out)
	p.out = p.out[n:]
	return n, nil
}

// next makes the next frame; io.EOF after the last event.
func (p *packer) next() error {
	p.plain.Reset()
	first := int64(0)
	for p.plain.Len() < frameBytes {
		if len(p.events) == 0 {
			var err error
			if p.events, err = p.store.Events(p.ctx, p.run.ID, p.pos, packEvents); err != nil {
				return err
			}
			if len(p.events) == 0 {
				break
			}
		}
		ev := p.events[0]
		p.events = p.events[1:]
		// A server that was cut short in deleting the run may have left a gap at the
		// front.
		if p.pos > 0 && ev.Seq != p.pos+1 {
			return fmt.Errorf("event %d comes after event %d", ev.Seq, p.pos)
		}
		p.pos = ev.Seq
		if first == 0 {
			first = ev.Seq
		}
		if err := appendLine(&p.plain, ev); err != nil {
			return err
		}
	}
	if first == 0 {
		if p.pos > 0 && p.pos != p.run.LastSeq {
			return fmt.Errorf("the events end with %d, not with %d", p.pos, p.run.LastSeq)
		}
		return io.EOF
	}
	p.frame = p.zip.EncodeAll(p.plain.Bytes(), p.frame[:0])
	p.out = p.frame
	p.frames = append(p.frames, stromboli.ArchiveFrame{First: first, Offset: p.offset, Bytes: int64(len(p.out))})
	p.offset += int64(len(p.out))
	return nil
}

// line is an event in an archive.
type line struct {
	Seq   int64               `json:"seq"`
	Type  stromboli.EventType `json:"type"`
	At    int64               `json:"at"` // milliseconds since 1970
	Line  int64               `json:"line,omitempty"`
	Index int                 `json:"index,omitempty"`
	Data  json.RawMessage     `json:"data,omitempty"`
}

// appendLine writes the data as it is: an encoder would change what it escapes.
func appendLine(to *bytes.Buffer, ev stromboli.Event) error {
	if !json.Valid(ev.Data) {
		return fmt.Errorf("the data of event %d is not JSON", ev.Seq)
	}
	head, err := json.Marshal(line{Seq: ev.Seq, Type: ev.Type, At: ev.At.UnixMilli(), Line: ev.Line, Index: ev.Index})
	if err != nil {
		return err
	}
	to.Write(head[:len(head)-1])
	to.WriteString(`,"data":`)
	to.Write(bytes.ReplaceAll(ev.Data, []byte("\n"), []byte(" "))) // between tokens, where it is JSON
	to.WriteString("}\n")
	return nil
}

func readLine(b []byte, runID string) (stromboli.Event, error) {
	var l line
	if err := json.Unmarshal(b, &l); err != nil {
		return stromboli.Event{}, errors.New("a line of the archive is not an event")
	}
	return stromboli.Event{
		Seq: l.Seq, RunID: runID, Type: l.Type, At: time.UnixMilli(l.At).UTC(), Line: l.Line, Index: l.Index, Data: l.Data,
	}, nil
}
