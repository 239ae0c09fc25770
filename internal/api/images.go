package api

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Images is what the API needs of the images' keeper. Images are the
// machine's, not a tenant's.
type Images interface {
	// List returns the images that have a name, by it, the best for agents first.
	List(ctx context.Context) ([]stromboli.Image, error)
	// Get returns an image; stromboli.NotFound where it isn't on this machine. A
	// short name means the one that the engine or Docker Hub has of it.
	Get(ctx context.Context, name string) (stromboli.Image, error)
	// Search asks registries; stromboli.RegistryFailed when one gives no answer.
	Search(ctx context.Context, q stromboli.ImageQuery) ([]stromboli.FoundImage, error)
	// Pull fetches an image and returns when it is on this machine. progress is
	// called by this goroutine, the first time at once, but only for a wish that
	// may be granted.
	Pull(ctx context.Context, w stromboli.ImageWish, progress func(stromboli.ImageProgress)) (stromboli.PulledImage, error)
}

// imageBody describes an image.
type imageBody struct {
	ID            string              `json:"id"`
	Repository    string              `json:"repository"`
	Tag           string              `json:"tag"`
	Size          int64               `json:"size"`
	Created       time.Time           `json:"created"`
	Compatibility stromboli.ImageRank `json:"compatibility_rank"`
	Compatible    bool                `json:"compatible"`
	Tools         []string            `json:"tools"`
	HasClaudeCLI  bool                `json:"has_claude_cli"`
	Description   string              `json:"description"`
}

// imageList is the answer of GET /images.
type imageList struct {
	Images []imageBody `json:"images"`
}

// imageDetail is the answer of GET /images/{name}.
type imageDetail struct {
	imageBody
	Labels          map[string]string `json:"labels"`
	RankDescription string            `json:"rank_description"` // a sentence
}

func imageOf(i stromboli.Image) imageBody {
	return imageBody{
		ID: i.ID, Repository: i.Repository, Tag: i.Tag, Size: i.Bytes, Created: i.Created.UTC(), Compatibility: i.Rank,
		Compatible: i.Compatible(), Tools: append([]string{}, i.Tools...), HasClaudeCLI: i.CLI, Description: i.Description,
	}
}

func (a *API) listImages(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	images, err := a.cfg.Images.List(r.Context())
	if err != nil {
		return err
	}
	list := imageList{make([]imageBody, 0, len(images))}
	for _, i := range images {
		list.Images = append(list.Images, imageOf(i))
	}
	a.answer(w, r, http.StatusOK, list)
	return nil
}

func (a *API) getImage(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	i, err := a.cfg.Images.Get(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	if i.Labels == nil {
		i.Labels = map[string]string{}
	}
	a.answer(w, r, http.StatusOK, imageDetail{imageOf(i), i.Labels, i.RankReason})
	return nil
}

// foundImage is one result of a search.
type foundImage struct {
	Index       string `json:"index"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Stars       int    `json:"stars"`
	Official    bool   `json:"official"`
	Automated   bool   `json:"automated"`
}

// imageSearch is the answer of GET /images/search.
type imageSearch struct {
	Results []foundImage `json:"results"`
}

const (
	searchLimit    = 25 // results, where the request doesn't say
	maxSearchLimit = 100
)

func (a *API) searchImages(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	limit, err := intParam(q, "limit", 1, maxSearchLimit, searchLimit)
	if err != nil {
		return err
	}
	whole, err := boolParam(q, "no_trunc")
	if err != nil {
		return err
	}
	term := strings.TrimSpace(q.Get("q"))
	if term == "" {
		return stromboli.FieldError("q", "is required and must not be blank")
	}
	found, err := a.cfg.Images.Search(r.Context(), stromboli.ImageQuery{Term: term, Limit: int(limit), NoTrunc: whole})
	if err != nil {
		return err
	}
	list := imageSearch{make([]foundImage, 0, len(found))}
	for _, f := range found {
		list.Results = append(list.Results, foundImage(f))
	}
	a.answer(w, r, http.StatusOK, list)
	return nil
}

// pullRequest is the body of POST /images/pull.
type pullRequest struct {
	Image    string `json:"image"`
	Platform string `json:"platform,omitempty"` // os/architecture[/variant]; this machine's by default
	Quiet    bool   `json:"quiet,omitempty"`    // no progress in a stream
}

// pullResponse is the answer to a pull.
type pullResponse struct {
	Success bool   `json:"success"`
	Image   string `json:"image"`
	ImageID string `json:"image_id"`
}

// pullImage answers when the image is there. The pull goes on when the client
// goes away: many give up long before a large image has come, and ask again.
func (a *API) pullImage(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	var in pullRequest
	if err := a.readInto(w, r, &in); err != nil {
		return err
	}
	if in.Image == "" {
		return stromboli.FieldError("image", "is required and must not be blank")
	}
	actedOn(r, in.Image)
	p := a.beginPull(r.Context(), stromboli.ImageWish{Name: in.Image, Platform: in.Platform, Keep: true})
	defer p.end()
	if !wantsStream(r) {
		select {
		case <-p.done:
		case <-a.stopping:
			return (&stromboli.Error{Code: stromboli.Draining, Message: "the server is about to stop; ask again", RetryAfter: 5 * time.Second})
		}
		if p.err != nil {
			return p.err
		}
		a.answer(w, r, http.StatusOK, pullResponse{true, in.Image, p.image.ID})
		return nil
	}
	select { // a refusal is an ordinary answer
	case <-p.started:
	case <-p.done:
		if p.err != nil {
			return p.err
		}
	}
	a.streamPull(w, r, p, in)
	return nil
}

// wantsStream reports whether the client asks for an event stream.
func wantsStream(r *http.Request) bool {
	return slices.ContainsFunc(r.Header.Values("Accept"), func(v string) bool { return strings.Contains(strings.ToLower(v), "text/event-stream") })
}

// pull is one request's wait for a pull.
type pull struct {
	cancel  context.CancelFunc
	wait    sync.WaitGroup
	started chan struct{}                // closed when the wish has been granted
	news    chan stromboli.ImageProgress // one slot: the newest
	done    chan struct{}                // closed at the end; image and err are set by then
	image   stromboli.PulledImage
	err     error
}

func (a *API) beginPull(ctx context.Context, w stromboli.ImageWish) *pull {
	ctx, cancel := context.WithCancel(ctx)
	p := &pull{cancel: cancel, started: make(chan struct{}), news: make(chan stromboli.ImageProgress, 1), done: make(chan struct{})}
	var once sync.Once
	p.wait.Go(func() {
		defer close(p.done)
		p.image, p.err = a.cfg.Images.Pull(ctx, w, func(now stromboli.ImageProgress) {
			once.Do(func() { close(p.started) })
			select {
			case <-p.news: // older
			default:
			}
			p.news <- now
		})
	})
	return p
}

// end ends the wait, not the pull.
func (p *pull) end() {
	p.cancel()
	p.wait.Wait()
}

// streamPull sends the progress, unless the client wants quiet, and the end as
// events of their names.
func (a *API) streamPull(w http.ResponseWriter, r *http.Request, p *pull, in pullRequest) {
	out := a.startStream(w)
	if err := out.open(""); err != nil {
		return
	}
	beat := time.NewTicker(a.cfg.Heartbeat)
	defer beat.Stop()
	news := p.news
	if in.Quiet {
		news = nil
	}
	for {
		var err error
		select {
		case now := <-news:
			err = out.json("progress", now)
		case <-beat.C:
			err = out.beat()
		case <-a.stopping:
			_ = out.retry(a.cfg.Retry)
			return
		case <-p.done:
			select {
			case now := <-news:
				_ = out.json("progress", now)
			default:
			}
			a.endPull(r, out, p, in)
			return
		}
		if err != nil {
			return
		}
	}
}

func (a *API) endPull(r *http.Request, out *sse, p *pull, in pullRequest) {
	if p.err == nil {
		_ = out.json("done", pullResponse{true, in.Image, p.image.ID})
		return
	}
	if r.Context().Err() != nil {
		return // nobody reads it
	}
	_, body := a.refusal(r, p.err)
	_ = out.json("error", body)
}

// json writes an event that is small by its nature.
func (s *sse) json(event string, v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	return s.event("", event, b, func() []byte { return []byte("{}") })
}
