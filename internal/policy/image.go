package policy

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// ImagePatternsSetting is the setting that the messages about images name.
const ImagePatternsSetting = "STROMBOLI_AGENT_ALLOWED_IMAGE_PATTERNS"

// dockerHub is where short names come from, as with Docker.
const dockerHub = "docker.io"

// ImageName is an image's name in full.
type ImageName struct {
	Repository string // with its registry
	Tag        string // empty where there is a digest
	Digest     string // algorithm:hex, or empty
}

var (
	registryForm   = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?$`)
	repositoryForm = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*$`)
	tagForm        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	digestForm     = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// ParseImageName completes a name: without a registry it is Docker Hub's, and
// without a tag and a digest it means the tag latest. A tag beside a digest has
// no meaning to engines and is left out.
func ParseImageName(name string) (ImageName, error) {
	if len(name) > maxImage {
		return ImageName{}, fmt.Errorf("is longer than %d bytes", maxImage)
	}
	bad := fmt.Errorf("%s is not an image's name", quote(name))
	repository, tag, digest := splitImage(name)
	n := ImageName{Repository: inFull(repository), Tag: tag, Digest: digest}
	parts := strings.Split(n.Repository, "/")
	if !registryForm.MatchString(parts[0]) {
		return ImageName{}, bad
	}
	for _, part := range parts[1:] {
		if !repositoryForm.MatchString(part) {
			return ImageName{}, bad
		}
	}
	if strings.HasSuffix(name, ":") || strings.HasSuffix(name, "@") || tag != "" && !tagForm.MatchString(tag) || digest != "" && !digestForm.MatchString(digest) {
		return ImageName{}, bad
	}
	switch {
	case digest != "":
		n.Tag = ""
	case tag == "":
		n.Tag = "latest"
	}
	return n, nil
}

// splitImage takes a name or a pattern apart.
func splitImage(name string) (repository, tag, digest string) {
	repository, digest, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(repository, ':'); i > strings.LastIndexByte(repository, '/') {
		repository, tag = repository[:i], repository[i+1:]
	}
	return repository, tag, digest
}

// inFull adds the registry that a repository leaves out.
func inFull(repository string) string {
	first, rest, deep := strings.Cut(repository, "/")
	switch {
	case !deep:
		return dockerHub + "/library/" + repository
	case first == "index.docker.io":
		return inFull(dockerHub + "/" + rest)
	case first == dockerHub && !strings.Contains(rest, "/") && !strings.Contains(rest, "*"):
		return dockerHub + "/library/" + rest
	case first == "localhost" || strings.ContainsAny(first, ".:"):
		return repository
	}
	return dockerHub + "/" + repository
}

// Registry is the host, perhaps with a port, that the image comes from.
func (n ImageName) Registry() string {
	host, _, _ := strings.Cut(n.Repository, "/")
	return host
}

// String is the name as engines take it.
func (n ImageName) String() string {
	if n.Digest != "" {
		return n.Repository + "@" + n.Digest
	}
	return n.Repository + ":" + n.Tag
}

// ImagePatterns are the images that an operator allows.
type ImagePatterns []imagePattern

type imagePattern struct {
	registry   *regexp.Regexp
	repository *regexp.Regexp
	tag        *regexp.Regexp // nil: any, and any digest
	digest     string
}

// ParseImagePatterns reads patterns. One is an image's name, completed as names
// are, in which * stands for anything but a slash and ** for anything; without
// a tag and a digest it means all of them. * alone means every image.
func ParseImagePatterns(list []string) (ImagePatterns, error) {
	var all ImagePatterns
	for _, text := range list {
		p, err := parseImagePattern(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ImagePatternsSetting, err)
		}
		all = append(all, p)
	}
	return all, nil
}

var patternForm = regexp.MustCompile(`^[A-Za-z0-9*][A-Za-z0-9._:/@*-]*$`)

func parseImagePattern(text string) (imagePattern, error) {
	if !patternForm.MatchString(text) || len(text) > maxImage || strings.Contains(text, "//") || strings.HasSuffix(text, "/") {
		return imagePattern{}, fmt.Errorf("%s is not a pattern such as ghcr.io/org/* or python:3.*", quote(text))
	}
	repository, tag, digest := splitImage(text)
	if strings.Trim(text, "*") == "" {
		repository = "**"
	} else {
		repository = inFull(repository)
	}
	if digest != "" && !digestForm.MatchString(digest) {
		return imagePattern{}, fmt.Errorf("%s: a digest is sha256: and 64 hexadecimal digits", quote(text))
	}
	host, _, _ := strings.Cut(repository, "/")
	p := imagePattern{registry: glob(host), repository: glob(repository), digest: digest}
	if digest == "" && tag != "" && strings.Trim(tag, "*") != "" {
		p.tag = glob(tag)
	}
	return p, nil
}

func glob(pattern string) *regexp.Regexp {
	quoted := regexp.QuoteMeta(pattern)
	quoted = strings.ReplaceAll(quoted, `\*\*`, `.*`)
	return regexp.MustCompile(`^` + strings.ReplaceAll(quoted, `\*`, `[^/]*`) + `$`)
}

// matches: where an engine is given a digest it doesn't look at tags, so only a
// pattern that leaves them open allows any digest.
func (p imagePattern) matches(n ImageName) bool {
	switch {
	case !p.repository.MatchString(n.Repository):
		return false
	case p.digest != "":
		return p.digest == n.Digest
	case p.tag != nil:
		return n.Digest == "" && p.tag.MatchString(n.Tag)
	}
	return true
}

// Allow reports whether one of the patterns allows an image.
func (all ImagePatterns) Allow(n ImageName) bool {
	for _, p := range all {
		if p.matches(n) {
			return true
		}
	}
	return false
}

// Registry reports whether images of a registry may be asked for: those that a
// pattern may mean, and Docker Hub.
func (all ImagePatterns) Registry(host string) bool {
	for _, p := range all {
		if p.registry.MatchString(host) {
			return true
		}
	}
	return host == dockerHub
}

// MayUseImage judges an image that is on this machine by the names that it has
// here: without patterns any may be used, else those that a pattern allows and
// the operator's own. An image's names count, not how the caller wrote them: an
// id, or a short name, may mean any.
func (c Config) MayUseImage(wanted string, names []string) error {
	if len(c.ImagePatterns) == 0 || wanted == c.Image {
		return nil
	}
	for _, name := range names {
		if n, err := ParseImageName(name); err == nil && c.ImagePatterns.Allow(n) {
			return nil
		}
	}
	return forbidImage("podman.image", fmt.Sprintf("%s is not allowed by %s", quote(wanted), ImagePatternsSetting))
}

// MayPull judges an image that is to be fetched; field names it in the request.
func (all ImagePatterns) MayPull(field string, n ImageName) error {
	switch {
	case n.Registry() == "localhost":
		e := stromboli.FieldError(field, "%s is not on this machine, and images of localhost are in no registry: build it first", quote(n.String()))
		e.Code = stromboli.ImageMissing
		return e
	case len(all) == 0:
		return forbidImage(field, fmt.Sprintf("%s can't be pulled: the server pulls no image unless %s allows it", quote(n.String()), ImagePatternsSetting))
	case !all.Allow(n):
		return forbidImage(field, fmt.Sprintf("%s is not allowed by %s", quote(n.String()), ImagePatternsSetting))
	}
	return nil
}

func forbidImage(field, message string) error {
	e := stromboli.FieldError(field, "%s", message)
	e.Code = stromboli.ImageForbidden
	return e
}
