package enginetest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// Offer is an image in the registry that a Fake pulls from.
type Offer struct {
	Archive []byte // as Archive makes it
	// Login, if set, is needed.
	Login *engine.Login
	// Gate, if set, is waited for in the middle of a pull.
	Gate <-chan struct{}
	// Err is the pull's end, if set.
	Err error
}

// Offer puts an image into the registry that f pulls from.
func (f *Fake) Offer(ref string, o Offer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.offers[ref] = o
}

// Pulls are the pulls so far.
func (f *Fake) Pulls() []engine.Pull {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.pulls)
}

// ImagePull implements engine.Images.
func (f *Fake) ImagePull(ctx context.Context, p engine.Pull, progress func(engine.PullProgress)) (string, error) {
	if err := f.enter(ctx, "ImagePull"); err != nil {
		return "", err
	}
	f.pulls = append(f.pulls, p)
	offer, ok := f.offers[p.Ref]
	f.mu.Unlock()
	op := "pull image " + p.Ref
	if !ok {
		return "", fakeError(op, engine.ErrImageMissing)
	}
	if !offer.mayPull(p.Login) {
		return "", fakeError(op, engine.ErrDenied)
	}
	if progress != nil {
		progress(engine.PullProgress{Stage: engine.PullCopying, Layers: 1})
	}
	if offer.Gate != nil {
		select {
		case <-offer.Gate:
		case <-ctx.Done():
			return "", fmt.Errorf("%s: %w", op, context.Cause(ctx))
		}
	}
	if offer.Err != nil {
		return "", offer.Err
	}
	if progress != nil {
		progress(engine.PullProgress{Stage: engine.PullStoring, Layers: 1})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, layer, config, err := openArchive(bytes.NewReader(offer.Archive))
	if err == nil {
		err = f.addImage(p.Ref, layer, config)
	}
	if err != nil {
		return "", err
	}
	return f.images[p.Ref].ID, nil
}

// ImageSearch implements engine.Images: it finds what is offered.
func (f *Fake) ImageSearch(ctx context.Context, s engine.Search) ([]engine.FoundImage, error) {
	if err := f.enter(ctx, "ImageSearch"); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	found := []engine.FoundImage{}
	for ref := range f.offers {
		if strings.Contains(ref, s.Term) && len(found) < s.Limit {
			index, _, _ := strings.Cut(ref, "/")
			found = append(found, engine.FoundImage{Index: index, Name: ref, Description: "an image", Stars: 3, Official: true})
		}
	}
	return found, nil
}
