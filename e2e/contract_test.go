package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/tomblancdev/stromboli/internal/api/openapi"
)

// contract is the API's document, by which every answer that the tests get is
// judged.
type contract struct {
	doc     map[string]any
	mux     *http.ServeMux // finds the path of the document that a request belongs to
	mu      sync.Mutex     // of schemas: compiling changes it, and tests run in parallel
	schemas *jsonschema.Compiler
}

const contractURL = "https://document.invalid/openapi.json"

func newContract() (*contract, error) {
	text, err := openapi.Files.ReadFile("openapi.json")
	if err != nil {
		return nil, err
	}
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := &contract{doc: parsed.(map[string]any), mux: http.NewServeMux(), schemas: jsonschema.NewCompiler()}
	c.schemas.AssertFormat()
	if err := c.schemas.AddResource(contractURL, parsed); err != nil {
		return nil, err
	}
	for path, at := range c.doc["paths"].(map[string]any) {
		for method := range at.(map[string]any) {
			path := strings.Replace(path, "/images/{name}", "/images/{name...}", 1) // names hold slashes
			c.mux.Handle(strings.ToUpper(method)+" "+path, http.NotFoundHandler())
		}
	}
	return c, nil
}

// check judges an answer: its status must be in the document, and its body what
// the document says. Answers of the router's own are refusals like all others.
func (c *contract) check(r *http.Request, status int, contentType string, body []byte) error {
	if strings.HasPrefix(r.UserAgent(), "stromboli-go/0.3.") {
		return nil // it gets what a document of its time said
	}
	_, pattern := c.mux.Handler(&http.Request{Method: r.Method, URL: r.URL, Host: r.Host})
	method, path, known := strings.Cut(strings.Replace(pattern, "...}", "}", 1), " ")
	var pointer string
	switch {
	case known && r.Method != http.MethodHead:
		answers := c.doc["paths"].(map[string]any)[path].(map[string]any)[strings.ToLower(method)].(map[string]any)["responses"].(map[string]any)
		answer, documented := answers[strconv.Itoa(status)].(map[string]any)
		if !documented && status < 500 && status != 408 && status != 431 {
			return fmt.Errorf("the status %d is not in the document", status)
		}
		content, _ := answer["content"].(map[string]any)
		media, _, err := mime.ParseMediaType(contentType)
		if err != nil && len(body) > 0 {
			return fmt.Errorf("Content-Type %q: %w", contentType, err)
		}
		switch {
		case !documented:
			pointer = "/components/schemas/Error"
		case len(content) == 0 && len(body) == 0:
			return nil
		case content[media] == nil:
			return fmt.Errorf("the type %q is not in the document for status %d", media, status)
		case media != "application/json":
			return nil
		default:
			pointer = "/paths/" + pointerOf(path) + "/" + strings.ToLower(method) + "/responses/" + strconv.Itoa(status) + "/content/" + pointerOf(media) + "/schema"
		}
	case contentType != "application/json":
		return nil // HEAD, and the documents themselves
	case status >= http.StatusBadRequest && r.Method != http.MethodHead:
		pointer = "/components/schemas/Error"
	default:
		return nil
	}
	c.mu.Lock()
	schema, err := c.schemas.Compile(contractURL + "#" + pointer)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

func pointerOf(name string) string {
	return url.PathEscape(strings.NewReplacer("~", "~0", "/", "~1").Replace(name))
}

// judge fails the test for an answer that is not in the document.
func (c *contract) judge(t *testing.T, r *http.Request, status int, contentType string, body []byte) {
	t.Helper()
	if err := c.check(r, status, contentType, body); err != nil {
		t.Errorf("the answer to %s %s is not what the API's document says: %v\n%.600s", r.Method, r.URL.Path, err, body)
	}
}

// judgedBody judges a body when it has been read to its end.
type judgedBody struct {
	io.ReadCloser
	t      *testing.T
	answer *http.Response
	all    bytes.Buffer
}

// Read implements io.Reader.
func (b *judgedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.all.Write(p[:n])
	if errors.Is(err, io.EOF) {
		suite.contract.judge(b.t, b.answer.Request, b.answer.StatusCode, b.answer.Header.Get("Content-Type"), b.all.Bytes())
	}
	return n, err
}

// TestContractJudges shows that an answer which isn't in the document is found.
func TestContractJudges(t *testing.T) {
	c, err := newContract()
	if err != nil {
		t.Fatal(err)
	}
	health := map[string]any{"name": "stromboli", "status": "ok", "version": "1", "components": []any{}}
	const asJSON = "application/json"
	for _, x := range []struct {
		method, path string
		status       int
		as           string
		change       func(map[string]any)
		good         bool
	}{
		{"GET", "/health", 200, asJSON, func(map[string]any) {}, true},
		{"GET", "/health", 200, asJSON, func(m map[string]any) { m["more"] = 1 }, true},
		{"GET", "/health", 200, asJSON, func(m map[string]any) { delete(m, "components") }, false},
		{"GET", "/health", 200, asJSON, func(m map[string]any) { m["components"] = nil }, false},
		{"GET", "/health", 200, asJSON, func(m map[string]any) { m["status"] = 200 }, false},
		{"GET", "/health", 200, "text/plain", func(map[string]any) {}, false},
		{"GET", "/health", 201, asJSON, func(map[string]any) {}, false},
		{"GET", "/jobs/job-1", 404, asJSON, func(map[string]any) {}, false},
		{"GET", "/jobs/job-1", 404, asJSON, func(m map[string]any) { m["error"], m["code"], m["request_id"] = "no", "not_found", "x" }, true},
		{"GET", "/sessions/a%2Fb", 400, asJSON, func(m map[string]any) { m["error"], m["code"], m["request_id"] = "no", "x", "x" }, true},
		{"GET", "/nothing", 404, asJSON, func(map[string]any) {}, false},
	} {
		body := map[string]any{}
		for k, v := range health {
			body[k] = v
		}
		x.change(body)
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequestWithContext(t.Context(), x.method, "http://h"+x.path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.check(r, x.status, x.as, b); (err == nil) != x.good {
			t.Errorf("%+v: %v", x, err)
		}
	}
}
