package podman

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

func containerPath(id, verb string) string {
	return "/containers/" + url.PathEscape(id) + verb
}

// Create implements engine.Containers.
func (c *Client) Create(ctx context.Context, spec engine.ContainerSpec) (engine.Created, error) {
	var out struct {
		ID       string   `json:"Id"`
		Warnings []string `json:"Warnings"`
	}
	err := c.call(ctx, request{
		op: "create container " + spec.Name, method: http.MethodPost, path: "/containers/create",
		body: c.wireSpec(spec), limit: changeLimit, missing: engine.ErrImageMissing,
	}, &out)
	return engine.Created{ID: out.ID, Warnings: out.Warnings}, err
}

// Start implements engine.Containers.
func (c *Client) Start(ctx context.Context, id string) error {
	err := c.call(ctx, request{
		op: "start container " + id, method: http.MethodPost, path: containerPath(id, "/start"),
		limit: changeLimit, also: http.StatusNotModified,
	}, nil)
	return err
}

// waitPatience is for how long Wait looks for an engine that went away.
const waitPatience = 15 * time.Second

// Wait implements engine.Containers. The end of the service in mid-wait is not
// the end of the container: it asks again.
func (c *Client) Wait(ctx context.Context, id string) (int, error) {
	// The default interval of 250 ms is most of the time that a short run takes;
	// below 10 ms Podman 4.3 gets slower, since every poll takes the lock.
	r := request{
		op: "wait for container " + id, method: http.MethodPost, path: containerPath(id, "/wait"),
		query: url.Values{"interval": {"10ms"}},
	}
	var lost time.Time
	for {
		began := time.Now()
		var code int
		err := c.call(ctx, r, &code)
		if err == nil || !errors.Is(err, engine.ErrUnavailable) {
			return code, err
		}
		if lost.IsZero() || time.Since(began) > time.Second {
			lost = time.Now()
		}
		if time.Since(lost) > waitPatience || pause(ctx, 100*time.Millisecond) != nil {
			return 0, err
		}
	}
}

// Kill implements engine.Containers.
func (c *Client) Kill(ctx context.Context, id, signal string) error {
	err := c.call(ctx, request{
		op: "kill container " + id, method: http.MethodPost, path: containerPath(id, "/kill"),
		query: url.Values{"signal": {signal}}, limit: changeLimit,
	}, nil)
	return err
}

// Stop implements engine.Containers.
func (c *Client) Stop(ctx context.Context, id string, grace time.Duration) error {
	err := c.call(ctx, request{
		op: "stop container " + id, method: http.MethodPost, path: containerPath(id, "/stop"),
		query: url.Values{"timeout": {seconds(grace)}}, limit: changeLimit + grace, also: http.StatusNotModified,
	}, nil)
	return err
}

// removeTries is how often Remove asks an engine that is busy with the
// container, typically with what follows its exit.
const removeTries = 12

// Remove implements engine.Containers.
func (c *Client) Remove(ctx context.Context, id string) error {
	r := request{
		op: "remove container " + id, method: http.MethodDelete, path: containerPath(id, ""),
		// Without timeout=0 a first process that ignores TERM costs 10 s.
		query: url.Values{"force": {"true"}, "timeout": {"0"}, "v": {"true"}},
		limit: changeLimit,
	}
	for try := 1; ; try++ {
		err := c.removeOnce(ctx, r)
		switch {
		case err == nil, errors.Is(err, engine.ErrNotFound):
			return nil
		case try == removeTries || !busy(err):
			return err
		}
		if pause(ctx, min(time.Duration(try)*25*time.Millisecond, 250*time.Millisecond)) != nil {
			return err
		}
	}
}

// removeOnce asks once. Podman reports a failed removal inside a 200.
func (c *Client) removeOnce(ctx context.Context, r request) error {
	resp, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err != nil {
		return transportError(ctx, r.op, err)
	}
	var reports []struct {
		Err json.RawMessage
	}
	if len(data) == 0 || json.Unmarshal(data, &reports) != nil {
		return nil
	}
	for _, report := range reports {
		if text := string(report.Err); text != "" && text != "null" && text != `""` {
			const status = http.StatusInternalServerError // in truth
			return &engine.Error{Op: r.op, Status: status, Message: text, Kind: kindOf(status, text, nil)}
		}
	}
	return nil
}

// busy reports whether a refused removal is worth another try.
func busy(err error) bool {
	e, ok := errors.AsType[*engine.Error](err)
	if !ok {
		return false
	}
	return e.Status == http.StatusConflict || e.Status == http.StatusInternalServerError &&
		(strings.Contains(e.Message, "busy") || strings.Contains(e.Message, "directory not empty") ||
			strings.Contains(e.Message, "container state improper") || strings.Contains(e.Message, "removing"))
}

// labelFilter is the filters parameter for labels.
func labelFilter(labels map[string]string) string {
	var list []string
	for k, v := range labels {
		if v != "" {
			k += "=" + v
		}
		list = append(list, k)
	}
	sort.Strings(list)
	data, err := json.Marshal(map[string][]string{"label": list})
	if err != nil { // strings always marshal
		return "{}"
	}
	return string(data)
}

// seconds rounds d up to whole seconds.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// pause waits for d or the context's end.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
