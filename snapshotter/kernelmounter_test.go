package snapshotter

import (
	"context"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
)

// kernelMounter is the oracle: the kernel's overlayfs as a Mounter. What it mounted is found again by whoever has the same
// kernelMounter, as a mount server's mounts are found by a new daemon.
type kernelMounter struct {
	// redirectDir is overlayfs's option: "on" renames directories of lower layers, "nofollow" is overlayfs's way without it.
	redirectDir string

	mu    sync.Mutex
	specs map[string]kernelMount // +checklocks:mu
}

type kernelMount struct {
	spec         MountSpec
	major, minor int
}

func newKernelMounter() *kernelMounter {
	return &kernelMounter{redirectDir: "on", specs: make(map[string]kernelMount)}
}

func (k *kernelMounter) Mount(_ context.Context, spec MountSpec) error {
	options := []string{"redirect_dir=" + k.redirectDir, "index=off", "metacopy=off"}
	if spec.Upper != "" {
		options = append(options, "upperdir="+spec.Upper, "workdir="+spec.Work)
	} else if options[0] = "redirect_dir=follow"; len(spec.Lower) == 1 {
		spec.Lower = append(spec.Lower, strings.Split(spec.MountPoint, "/mounts/")[0]+"/empty")
	}
	options = append(options, "lowerdir="+strings.Join(spec.Lower, ":"))
	m := mount.Mount{Type: "overlay", Source: "oracle", Options: options}
	if err := m.Mount(spec.MountPoint); err != nil {
		return err
	}
	at, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(spec.MountPoint))
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, old := range k.specs { // a device number comes back once its file system is gone
		if old.major == at[0].Major && old.minor == at[0].Minor {
			delete(k.specs, id)
		}
	}
	k.specs[spec.ID] = kernelMount{spec: spec, major: at[0].Major, minor: at[0].Minor}
	return nil
}

func (k *kernelMounter) Unmount(_ context.Context, id string) error {
	return detach(id)
}

func (k *kernelMounter) Flush(_ context.Context, spec MountSpec, _ FlushOptions) error {
	return syncFileSystem(spec.Upper)
}

// Mounted knows from the mount table what is still used.
func (k *kernelMounter) Mounted(context.Context) ([]MountSpec, error) {
	k.mu.Lock() // before the table is read: a mount that came after it is not gone
	defer k.mu.Unlock()
	all, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return nil, err
	}
	type device struct{ major, minor int }
	live := make(map[device]bool)
	for _, m := range all {
		live[device{m.Major, m.Minor}] = true
	}
	var specs []MountSpec
	for id, m := range k.specs {
		if !live[device{m.major, m.minor}] {
			delete(k.specs, id)
			continue
		}
		specs = append(specs, m.spec)
	}
	return specs, nil
}
