package overlayfuse

// alias is one name of an inode.
type alias struct {
	parent *inode
	name   string
	upper  bool // the upper holds this name; else a lower layer does
}

// aliasSet is the names of an inode.
//
// Locks: the inode's mu.
type aliasSet struct {
	only *inode   // the directory of the only name, which is that of inode.lower and not in the upper: so are nearly all
	more *[]alias // nil, or all names; only is nil then
}

// aliases gives the names, in the order in which they were found.
//
// Locks: mu is held, also by who looks at what it gives.
func (in *inode) aliases(yield func(alias) bool) {
	switch {
	case in.names.only != nil:
		yield(alias{parent: in.names.only, name: in.lower.name})
	case in.names.more != nil:
		for _, a := range *in.names.more {
			if !yield(a) {
				return
			}
		}
	}
}

// oldest is the name that was found first; of a directory the only one. Its parent is nil if there is none.
//
// Locks: mu is held.
func (in *inode) oldest() alias {
	switch {
	case in.names.only != nil:
		return alias{parent: in.names.only, name: in.lower.name}
	case in.names.more != nil && len(*in.names.more) > 0:
		return (*in.names.more)[0]
	}
	return alias{}
}

// parents gives the directories of the names.
func (s aliasSet) parents(yield func(*inode) bool) {
	switch {
	case s.only != nil:
		yield(s.only)
	case s.more != nil:
		for _, a := range *s.more {
			if !yield(a.parent) {
				return
			}
		}
	}
}

// name enters a name; false: it was there.
//
// Locks: mu is held.
func (in *inode) name(a alias) bool {
	if in.names == (aliasSet{}) && !a.upper && in.lower != nil && in.lower.name == a.name {
		in.names.only = a.parent
		return true
	}
	all := in.list()
	for i := range *all {
		if old := &(*all)[i]; old.parent == a.parent && old.name == a.name {
			old.upper = old.upper || a.upper
			return false
		}
	}
	*all = append(*all, a)
	return true
}

// unname takes a name away; false: there is none.
//
// Locks: mu is held.
func (in *inode) unname(parent *inode, name string) bool {
	all := *in.list()
	for i, a := range all {
		if a.parent == parent && a.name == name {
			*in.names.more = append(all[:i:i], all[i+1:]...)
			return true
		}
	}
	return false
}

// list is the names as a list that can be changed.
func (in *inode) list() *[]alias {
	if in.names.more == nil {
		var all []alias
		for a := range in.aliases {
			all = append(all, a)
		}
		in.names = aliasSet{more: &all}
	}
	return in.names.more
}
