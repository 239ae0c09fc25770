package engine

import "time"

// Image is an image as the engine describes it. List leaves Config fields
// (Env, Entrypoint, Command, User, Workdir, OS, Architecture) empty.
type Image struct {
	ID           string
	Digest       string // of the manifest; the key for facts about an image
	Names        []string
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
