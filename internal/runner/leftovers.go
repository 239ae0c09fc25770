package runner

import (
	"context"
	"errors"
	"strings"
)

// A transcript is stored before the row that names it, and the version before is
// deleted after the row names it no more. A server that dies in between leaves a
// blob that nobody needs; the next one finds it.

// imports holds imported transcripts, each under a name of its own.
const imports = "imports"

// leftoverBatch is how many blobs are asked about at a time.
const leftoverBatch = 1000

// removeLeftovers deletes blobs that no session needs. Runs and imports may go on
// meanwhile: a key is some one run's or import's, so that what nobody needs, nobody
// ever will.
func (r *Runner) removeLeftovers(ctx context.Context) {
	var errs []error
	for _, prefix := range []string{imports, transcripts} {
		var batch []string
		err := r.cfg.Blobs.Keys(ctx, prefix, func(key string) error {
			if batch = append(batch, key); len(batch) < leftoverBatch {
				return nil
			}
			full := batch
			batch = nil
			return r.removeUnused(ctx, full)
		})
		errs = append(errs, err, r.removeUnused(ctx, batch))
	}
	if err := errors.Join(errs...); err != nil && ctx.Err() == nil {
		r.log.WarnContext(ctx, "looking for transcripts that no session needs", "error", err)
	}
}

func (r *Runner) removeUnused(ctx context.Context, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	// Asked first: an import that has ended by now has its row.
	importing := make(map[string]bool)
	r.mu.Lock()
	for _, key := range keys {
		importing[key] = r.importing[key]
	}
	r.mu.Unlock()
	use, err := r.cfg.Store.TranscriptsInUse(ctx, keys)
	if err != nil {
		return err
	}
	var errs []error
	for _, key := range keys {
		session, _, _ := strings.Cut(strings.TrimPrefix(key, transcripts+"/"), "/")
		if use.Keys[key] || use.Busy[session] || importing[key] {
			continue
		}
		r.log.InfoContext(ctx, "deleting a transcript that no session needs", "key", key)
		errs = append(errs, r.cfg.Blobs.Delete(ctx, key))
	}
	return errors.Join(errs...)
}

// importsInto says that a key is needed until done is called, though no row says
// so.
func (r *Runner) importsInto(key string) (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.importing[key] = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.importing, key)
	}
}
