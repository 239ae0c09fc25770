package stromboli

import "time"

// ImageRank says how well agents fare in an image; the lower, the better.
type ImageRank int

// The ranks.
const (
	RankDeclared     ImageRank = 1 // its label LabelCompatible says that it is made for agents
	RankHasCLI       ImageRank = 2 // its label LabelCLI says that it brings the agent CLI
	RankRuns         ImageRank = 3 // the CLI runs in it, as was found by looking
	RankIncompatible ImageRank = 4 // no agent can run in it
)

// Labels of images that the server reads.
const (
	LabelCompatible  = "ai.stromboli.compatible"
	LabelCLI         = "ai.stromboli.claude-cli"
	LabelTools       = "ai.stromboli.tools"
	LabelDescription = "ai.stromboli.description"
)

// Image is a name of an image on this machine, and the image.
type Image struct {
	ID         string
	Repository string // with its registry; empty for an image without a name
	Tag        string
	Bytes      int64
	Created    time.Time
	Labels     map[string]string

	Rank        ImageRank
	RankReason  string   // a sentence
	Tools       []string // as its label tells them
	CLI         bool     // it brings an agent CLI of its own
	Description string
}

// Compatible reports whether agents can run in the image.
func (i Image) Compatible() bool { return i.Rank < RankIncompatible }

// ImageFacts are what was found out about an image by looking into it.
type ImageFacts struct {
	Libc string // "glibc", "musl", or empty where neither's loader is there
	CLI  bool   // an agent CLI is installed in it
	// Unusable says why no agent can run in it; empty: one can.
	Unusable string
}

// ImageWish names an image that is to be fetched from its registry.
type ImageWish struct {
	Name     string // short names are Docker Hub's
	Platform string // os/architecture[/variant]; empty: this machine's
	// Keep lets the pull go on when nobody waits for it any more.
	Keep bool
}

// PulledImage is what a pull has brought.
type PulledImage struct {
	Name string // in full
	ID   string
}

// ImageProgress is how far a pull is; it is the data of an image.progress event
// too.
type ImageProgress struct {
	Image string     `json:"image"`
	Stage ImageStage `json:"stage"`
	// Current is the number of layers whose transfer has begun; Total that of
	// all, 0 until it is known.
	Current int `json:"current"`
	Total   int `json:"total"`
}

// ImageStage is what a pull is doing.
type ImageStage string

// The stages, in their order.
const (
	StageWaiting     ImageStage = "waiting"     // for other pulls
	StageResolving   ImageStage = "resolving"   // asking the registry
	StageDownloading ImageStage = "downloading" // layers, which are unpacked as they come
	StageStoring     ImageStage = "storing"
)

// ImageQuery is a search in registries.
type ImageQuery struct {
	Term    string
	Limit   int
	NoTrunc bool // whole descriptions
}

// FoundImage is one result of a search.
type FoundImage struct {
	Index       string // the registry
	Name        string
	Description string
	Stars       int
	Official    bool
	Automated   bool
}
