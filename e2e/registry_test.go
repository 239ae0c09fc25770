package e2e_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/setup"
)

// otherCPU is one that this machine doesn't have.
func otherCPU() string {
	if runtime.GOARCH == "arm64" {
		return "amd64"
	}
	return "arm64"
}

// rootOf is a root file system with files of 200 KB that nobody runs.
func rootOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range files {
		content := make([]byte, 200<<10)
		_, err := rand.Read(content)
		if err := errors.Join(err, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))})); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// runnableRoot is a root file system in which the agent CLI runs.
func runnableRoot(t *testing.T) []byte {
	t.Helper()
	cfg := setup.Config{CacheDir: suite.cache, Env: os.Environ(), Libc: setup.Musl}
	if _, err := setup.CLI(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := setup.MuslLoader(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return imageRoot(imageProgram(t, "bash-static", "bash-static"), imageProgram(t, "busybox-static", "busybox"))
}

// writeLogins writes a file as `podman login` does.
func writeLogins(t *testing.T, path, host, password string) {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + password))
	b, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": auth}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

type listedImage struct {
	ID         string   `json:"id"`
	Repository string   `json:"repository"`
	Tag        string   `json:"tag"`
	Rank       int      `json:"compatibility_rank"`
	Compatible bool     `json:"compatible"`
	Tools      []string `json:"tools"`
}

func (s *server) images(t *testing.T) []listedImage {
	t.Helper()
	var list struct{ Images []listedImage }
	if err := json.Unmarshal(s.send(t, "GET", "/images", "").want(t, 200).body, &list); err != nil {
		t.Fatal(err)
	}
	return list.Images
}

// TestRegistry: images are pulled from a registry that asks for a login, ranked
// by what they are, found by every spelling of their names, and searched.
func TestRegistry(t *testing.T) {
	g := startRegistry(t)
	root := rootOf(t, "bin/bash")
	good := g.push("team/good:1", madeImage{root: root, labels: map[string]string{stromboli.LabelCompatible: "true", stromboli.LabelTools: "git, node"}})
	plain := g.push("team/plain:1", madeImage{root: root})
	noBash := g.push("team/no-bash:1", madeImage{root: rootOf(t, "bin/sh")})
	foreign := g.push("team/foreign:1", madeImage{root: root, arch: otherCPU()})
	index := g.pushIndex("team/index:1", madeImage{root: root, arch: otherCPU()})
	g.set(func(g *imageRegistry) { g.locks = true })
	logins := filepath.Join(t.TempDir(), "auth.json")
	writeLogins(t, logins, g.host, registryPassword)
	s := start(t, "STROMBOLI_AGENT_ALLOWED_IMAGE_PATTERNS="+g.host+"/team/*,127.0.0.1:1/*", "REGISTRY_AUTH_FILE="+logins)
	pull := func(image string, more ...string) apiAnswer {
		b, _ := json.Marshal(map[string]string{"image": image})
		return s.send(t, "POST", "/images/pull", string(b), more...)
	}

	for _, image := range []string{good, noBash, foreign} {
		o := pull(image).want(t, 200).object(t)
		if id, _ := o["image_id"].(string); o["success"] != true || o["image"] != image || len(id) != 64 {
			t.Errorf("%v", o)
		}
	}
	blocks := sseBlocks(t, pull(plain, "Accept: text/event-stream").want(t, 200).body)
	if last := blocks[len(blocks)-1]; last.event != "done" || !strings.Contains(last.data, `"image":"`+plain+`"`) {
		t.Errorf("%+v", blocks)
	}
	if !slices.ContainsFunc(blocks, func(b sseBlock) bool { return b.event == "progress" && strings.Contains(b.data, plain) }) {
		t.Errorf("no progress: %+v", blocks)
	}

	waitFor(t, "a look into every image", func() bool {
		return !slices.ContainsFunc(s.images(t), func(i listedImage) bool {
			return i.Rank == 4 && strings.Contains(string(s.send(t, "GET", "/images/"+i.Repository+":"+i.Tag, "").body), "ask again")
		})
	})
	ranks := map[string]int{}
	before := 0
	for _, i := range s.images(t) {
		ranks[i.Repository+":"+i.Tag] = i.Rank
		if i.Rank < before || i.Compatible != (i.Rank < 4) {
			t.Errorf("%+v comes after rank %d", i, before)
		}
		before = i.Rank
		s.send(t, "GET", "/images/"+i.Repository+":"+i.Tag, "").want(t, 200)
	}
	for image, want := range map[string]int{good: 1, plain: 3, suite.image: 3, noBash: 4, foreign: 4} {
		if ranks[image] != want {
			t.Errorf("%s has rank %d, want %d", image, ranks[image], want)
		}
	}
	for _, path := range []string{good, url.PathEscape(good), strings.ReplaceAll(good, "/", "%2f"), "team/good:1"} {
		o := s.send(t, "GET", "/images/"+path, "").want(t, 200).object(t)
		if o["repository"] != g.host+"/team/good" || o["tag"] != "1" || o["rank_description"] == "" {
			t.Errorf("%s: %v", path, o)
		}
		if created, err := time.Parse(time.RFC3339, o["created"].(string)); err != nil || created.IsZero() {
			t.Errorf("created: %v, %v", o["created"], err)
		}
	}
	if o := s.send(t, "GET", "/images/"+url.PathEscape(foreign), "").object(t); !strings.Contains(o["rank_description"].(string), "linux/"+otherCPU()) {
		t.Errorf("%v", o)
	}
	s.send(t, "GET", "/images/"+g.host+"/team/none:1", "").refused(t, 404, "not_found", "")

	in := spec(text("never"))
	in.Podman.Image = foreign
	if _, err := s.c.Run(s.ctx(), in); !errors.Is(err, stromboli.ImageMissing) || !strings.Contains(err.Error(), "is for linux/"+otherCPU()) {
		t.Errorf("another CPU's image: %v", err)
	}
	pull(index).refused(t, 404, "not_found", "")
	pull(g.host+"/team/none:1").refused(t, 404, "not_found", "")
	pull(g.host+"/other/x:1").refused(t, 400, "image_not_allowed", "image")
	pull("127.0.0.1:1/x").refused(t, 502, "registry_failed", "")

	var found struct {
		Results []struct{ Index, Name string }
	}
	if err := json.Unmarshal(s.send(t, "GET", "/images/search?q="+g.host+"/team/g", "").want(t, 200).body, &found); err != nil {
		t.Fatal(err)
	}
	if len(found.Results) != 1 || found.Results[0].Name != g.host+"/team/good" {
		t.Errorf("found %+v", found)
	}
	s.send(t, "GET", "/images/search?q=127.0.0.1:1/x", "").refused(t, 502, "registry_failed", "")
	s.send(t, "GET", "/images/search?q=127.0.0.1:2/x", "").refused(t, 400, "image_not_allowed", "q")

	writeLogins(t, logins, g.host, "wrong")
	denied := pull(good)
	denied.refused(t, 502, "registry_failed", "")
	if !strings.Contains(string(denied.body), "podman login") || strings.Contains(string(denied.body), registryPassword) {
		t.Errorf("%s", denied.body)
	}
	if strings.Contains(s.log.tail(1<<20), registryPassword) {
		t.Error("the log holds the password")
	}
}

// TestPullInRuns: runs whose image is not here wait for one pull of it; a cancel
// ends the wait at once, and a killed server's successor goes on.
func TestPullInRuns(t *testing.T) {
	g := startRegistry(t)
	root := runnableRoot(t)
	alone := g.push("alone:1", madeImage{root: root, mark: "alone"})
	shared := g.push("shared:1", madeImage{root: root, mark: "shared"})
	killed := g.push("killed:1", madeImage{root: root, mark: "killed"})
	left := g.push("left:1", madeImage{root: root, mark: "left"})
	s := start(t, "STROMBOLI_AGENT_ALLOWED_IMAGE_PATTERNS="+g.host+"/*")
	using := func(image string) stromboli.RunSpec {
		in := spec(text("pulled"))
		in.Podman.Image = image
		return in
	}
	hold := func() (release func()) {
		c := make(chan struct{})
		g.set(func(g *imageRegistry) { g.hold = c })
		return func() {
			g.set(func(g *imageRegistry) { g.hold = nil })
			close(c)
		}
	}

	release := hold()
	id := s.submit(t, using(left))
	s.waitPhase(id, stromboli.PhasePulling)
	if err := s.c.Cancel(s.ctx(), id); err != nil {
		t.Fatal(err)
	}
	s.await(t, id).want(t, stromboli.Cancelled, stromboli.ReasonRequest)
	release() // it did not wait for the registry

	pulled := func(image string) {
		t.Helper()
		s.send(t, "POST", "/images/pull", `{"image":"`+image+`"}`).want(t, 200)
	}
	pulled(alone)
	release = hold()
	id = s.submit(t, using(shared))
	s.waitPhase(id, stromboli.PhasePulling)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		s.send(t, "POST", "/images/pull", `{"image":"`+shared+`"}`)
	}()
	release()
	<-answered
	image, err := suite.engine.ImageInspect(s.ctx(), shared)
	if err != nil {
		t.Fatal(err)
	}
	run := s.await(t, id)
	run.want(t, stromboli.Completed, "")
	if n := run.count(stromboli.EventImageProgress); run.ImageDigest != image.Digest || n == 0 || n > 20 {
		t.Errorf("digest %q, want %q; %d events of progress", run.ImageDigest, image.Digest, n)
	}
	if n, one := g.count("shared"), g.count("alone"); n != one {
		t.Errorf("the manifest was asked for %d times, by a single pull %d times", n, one)
	}

	release = hold()
	id = s.submit(t, using(killed))
	s.waitPhase(id, stromboli.PhasePulling)
	s.kill()
	release()
	s.up()
	s.await(t, id).want(t, stromboli.Completed, "")
}

// TestCutPull: a layer whose transfer breaks is asked for again; where it always
// breaks the error says so, no image is there, and the next pull gets it.
func TestCutPull(t *testing.T) {
	g := startRegistry(t)
	root := rootOf(t, "bin/bash")
	once := g.push("once:1", madeImage{root: root})
	always := g.push("always:1", madeImage{root: root, mark: "always"})
	s := start(t, "STROMBOLI_AGENT_ALLOWED_IMAGE_PATTERNS="+g.host+"/*")
	pull := func(image string) apiAnswer {
		return s.send(t, "POST", "/images/pull", `{"image":"`+image+`"}`)
	}
	g.set(func(g *imageRegistry) { g.cuts = -1 })
	begin := time.Now()
	broken := pull(always)
	broken.refused(t, 502, "registry_failed", "")
	t.Logf("%s: %s", time.Since(begin), broken.body)
	for _, i := range s.images(t) {
		if strings.HasPrefix(i.Repository, g.host) {
			t.Errorf("%+v is there", i)
		}
	}
	in := spec(text("never"))
	in.Podman.Image = always
	s.do(t, in).want(t, stromboli.Failed, stromboli.ReasonImage)
	g.set(func(g *imageRegistry) { g.cuts = 1 })
	pull(once).want(t, 200)
	g.set(func(g *imageRegistry) { g.cuts = 0 })
	pull(always).want(t, 200)
}
