package apitest

import (
	"context"
	"strings"
	"sync"

	"github.com/tomblancdev/stromboli"
)

// Gallery implements api.Images.
type Gallery struct {
	Images []stromboli.Image
	Found  []stromboli.FoundImage
	// Pulling, if set, is what Pull does once the wish has been told.
	Pulling func(ctx context.Context, w stromboli.ImageWish, progress func(stromboli.ImageProgress)) (stromboli.PulledImage, error)

	mu      sync.Mutex
	queries []stromboli.ImageQuery
}

// Queries are the searches so far.
func (s *Gallery) Queries() []stromboli.ImageQuery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]stromboli.ImageQuery{}, s.queries...)
}

// List implements api.Images.
func (s *Gallery) List(context.Context) ([]stromboli.Image, error) { return s.Images, nil }

// Get implements api.Images.
func (s *Gallery) Get(_ context.Context, name string) (stromboli.Image, error) {
	for _, i := range s.Images {
		if full := i.Repository + ":" + i.Tag; full == name || strings.HasSuffix(full, "/"+name) {
			return i, nil
		}
	}
	return stromboli.Image{}, stromboli.Errorf(stromboli.NotFound, "there is no image %q on this machine", name)
}

// Search implements api.Images.
func (s *Gallery) Search(_ context.Context, q stromboli.ImageQuery) ([]stromboli.FoundImage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries = append(s.queries, q)
	if q.Term == "broken" {
		return nil, stromboli.Errorf(stromboli.RegistryFailed, "the registry failed")
	}
	return s.Found, nil
}

// Pull implements api.Images.
func (s *Gallery) Pull(ctx context.Context, w stromboli.ImageWish, progress func(stromboli.ImageProgress)) (stromboli.PulledImage, error) {
	if strings.HasPrefix(w.Name, "forbidden") {
		e := stromboli.FieldError("image", "is not allowed")
		e.Code = stromboli.ImageForbidden
		return stromboli.PulledImage{}, e
	}
	progress(stromboli.ImageProgress{Image: w.Name, Stage: stromboli.StageWaiting})
	if s.Pulling != nil {
		return s.Pulling(ctx, w, progress)
	}
	return stromboli.PulledImage{Name: w.Name, ID: "id-" + w.Name}, nil
}
