package snapshotter

import "context"

// faultyMounter asks fault, if it is set, before each call of the Mounter below it; method is the method's name.
type faultyMounter struct {
	Mounter
	fault func(method string, spec MountSpec) error
}

func (f *faultyMounter) ask(method string, spec MountSpec) error {
	if f.fault == nil {
		return nil
	}
	return f.fault(method, spec)
}

func (f *faultyMounter) Mount(ctx context.Context, spec MountSpec) error {
	if err := f.ask("Mount", spec); err != nil {
		return err
	}
	return f.Mounter.Mount(ctx, spec)
}

func (f *faultyMounter) Unmount(ctx context.Context, id string) error {
	if err := f.ask("Unmount", MountSpec{ID: id}); err != nil {
		return err
	}
	return f.Mounter.Unmount(ctx, id)
}

func (f *faultyMounter) Flush(ctx context.Context, spec MountSpec, opts FlushOptions) error {
	if err := f.ask("Flush", spec); err != nil {
		return err
	}
	return f.Mounter.Flush(ctx, spec, opts)
}

func (f *faultyMounter) Mounted(ctx context.Context) ([]MountSpec, error) {
	if err := f.ask("Mounted", MountSpec{}); err != nil {
		return nil, err
	}
	return f.Mounter.Mounted(ctx)
}
