package archive

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/klauspost/compress/zstd"

	"github.com/tomblancdev/stromboli"
)

const (
	// maxRead bounds the data of one answer of Events, as the store does.
	maxRead = 8 << 20
	// maxLine is above the largest event: a line of the CLI, all of it escaped.
	maxLine = 64 << 20
)

// Events returns a run's events after a position from wherever they are, as the
// store's Events does from the database.
func (a *Archive) Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error) {
	rows, err := a.cfg.Store.Events(ctx, runID, after, limit)
	if err != nil || (len(rows) > 0 && rows[0].Seq == after+1) {
		return rows, err
	}
	arch, err := a.cfg.Store.GetArchive(ctx, runID)
	if errors.Is(err, stromboli.NotFound) {
		return rows, nil
	}
	if err != nil {
		return nil, err
	}
	run, err := a.cfg.Store.FinishedRun(ctx, runID)
	if errors.Is(err, stromboli.NotFound) || (err == nil && after >= run.LastSeq) {
		return rows, nil
	}
	if err != nil {
		return nil, err
	}
	events, err := a.page(ctx, arch, after, limit)
	if errors.Is(err, stromboli.NotFound) { // deleted by now: a reader is told that the events are gone
		return rows, nil
	}
	return events, err
}

// EventData returns one event's data, however large; NotFound without it.
func (a *Archive) EventData(ctx context.Context, runID string, seq int64) (json.RawMessage, error) {
	data, missing := a.cfg.Store.EventData(ctx, runID, seq)
	if missing == nil || !errors.Is(missing, stromboli.NotFound) {
		return data, missing
	}
	arch, err := a.cfg.Store.GetArchive(ctx, runID)
	if errors.Is(err, stromboli.NotFound) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	events, err := a.page(ctx, arch, seq-1, 1)
	switch {
	case errors.Is(err, stromboli.NotFound), err == nil && (len(events) == 0 || events[0].Seq != seq):
		return nil, missing
	case err != nil:
		return nil, err
	}
	return events[0].Data, nil
}

// page reads up to limit events after a position from an archive, at least one
// where there is one.
func (a *Archive) page(ctx context.Context, arch stromboli.Archive, after int64, limit int) ([]stromboli.Event, error) {
	b, err := a.bucket(arch.Place)
	if err != nil {
		return nil, err
	}
	// The last frame that begins at or before the event that is asked for.
	i := max(sort.Search(len(arch.Frames), func(i int) bool { return arch.Frames[i].First > after+1 })-1, 0)
	p := page{runID: arch.RunID, after: after, limit: limit}
	for ; i < len(arch.Frames) && !p.full(); i++ {
		if err := a.told(ctx, p.frame(ctx, b, arch.Key, arch.Frames[i])); err != nil {
			if errors.Is(err, stromboli.NotFound) {
				a.cfg.Log.WarnContext(ctx, "an archive of events is not where it should be", "run", arch.RunID, "key", arch.Key)
			}
			return nil, fmt.Errorf("reading the archive of %s: %w", arch.RunID, err)
		}
	}
	return p.events, nil
}

// page is what was read of an archive.
type page struct {
	runID  string
	after  int64
	limit  int
	events []stromboli.Event
	size   int
}

func (p *page) full() bool { return len(p.events) >= p.limit || p.size >= maxRead }

func (p *page) frame(ctx context.Context, b Bucket, key string, f stromboli.ArchiveFrame) (err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	src, err := b.GetRange(ctx, key, f.Offset, f.Bytes)
	if err != nil {
		return down(err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	zip, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(2*maxLine))
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	defer zip.Close()
	lines := bufio.NewReaderSize(io.LimitReader(zip, 2*maxLine), 64<<10)
	for !p.full() {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(text) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the archive is damaged: %w", err)
		}
		ev, err := readLine(text, p.runID)
		if err != nil {
			return err
		}
		if ev.Seq > p.after {
			p.events = append(p.events, ev)
			p.size += len(ev.Data)
		}
	}
	return nil
}
