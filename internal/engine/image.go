package engine

import "time"

// Image is an image as the engine describes it. List leaves Config fields
// (Env, Entrypoint, Command, User, Workdir, OS, Architecture) empty.
type Image struct {
	ID           string
	Digest       string // of the manifest; the key for facts about an image
	Names        []string
	DigestNames  []string // repository@digest
	Labels       map[string]string
	Created      time.Time
	Bytes        int64
	Env          []string
	Entrypoint   []string
	Command      []string
	User         string
	Workdir      string
	OS           string
	Architecture string
}

// Pull is an image that is to be fetched.
type Pull struct {
	Ref string // the name in full
	// OS, Architecture and Variant choose among an image's platforms; empty: the
	// engine's own.
	OS, Architecture, Variant string
	Login                     *Login // nil: the engine's own, if it has one
	Insecure                  bool   // without TLS, or without checking its certificate
}

// Login is a credential for a registry.
type Login struct {
	Username, Password string
	IdentityToken      string
}

// PullProgress is how far a pull is.
type PullProgress struct {
	Stage  PullStage
	Layers int // whose transfer has begun
}

// PullStage is what a pull does.
type PullStage int

// The stages of a pull, in their order.
const (
	PullResolving PullStage = iota
	PullCopying             // layers
	PullStoring             // all layers are there
)

// Search is a question to registries.
type Search struct {
	Term     string // a registry before the first slash asks that one alone
	Limit    int
	Registry string // whose login Login is
	Login    *Login
	Insecure bool
}

// FoundImage is an answer to a Search.
type FoundImage struct {
	Index       string // the registry
	Name        string
	Description string // whole
	Stars       int
	Official    bool
	Automated   bool
}
