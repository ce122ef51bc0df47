{{- define "k8s-copycat.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "k8s-copycat.fullname" -}}
{{- $name := include "k8s-copycat.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* For objects outside the release's namespace: two releases of one name must not share them. */}}
{{- define "k8s-copycat.globalName" -}}
{{- printf "%s-%s" .Release.Namespace (include "k8s-copycat.fullname" .) -}}
{{- end -}}

{{- define "k8s-copycat.selectorLabels" -}}
app.kubernetes.io/name: {{ include "k8s-copycat.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "k8s-copycat.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "k8s-copycat.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "k8s-copycat.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "k8s-copycat.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "k8s-copycat.image" -}}
{{- $repository := required "image.repository: name the registry and repository that hold the image, such as registry.example.com/k8s-copycat" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The namespaces to watch as a JSON list if all are plain names, else an empty list: the whole cluster. */}}
{{- define "k8s-copycat.namespaces" -}}
{{- $names := .Values.config.includeNamespaces | default (list "*") -}}
{{- $literal := true -}}
{{- range $names -}}
{{- if regexMatch "[^a-z0-9-]" . }}{{ $literal = false }}{{ end -}}
{{- end -}}
{{- ternary ($names | uniq | sortAlpha) (list) $literal | toJson -}}
{{- end -}}

{{/* list and watch for each watched kind; nothing else is needed to see what runs. */}}
{{- define "k8s-copycat.watchRules" -}}
{{- $wanted := list -}}
{{- range .Values.config.watchResources | default (list "deployments" "statefulsets" "daemonsets" "jobs" "cronjobs" "pods") -}}
{{- $wanted = append $wanted (lower .) -}}
{{- end -}}
{{- $groups := list (list "" (list "pods")) (list "apps" (list "deployments" "statefulsets" "daemonsets")) (list "batch" (list "jobs" "cronjobs")) -}}
{{- range $groups -}}
{{- $resources := list -}}
{{- range index . 1 -}}
{{- if has . $wanted }}{{ $resources = append $resources . }}{{ end -}}
{{- end -}}
{{- if $resources }}
- apiGroups: [{{ index . 0 | quote }}]
  resources: {{ toJson $resources }}
  verbs: [list, watch]
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Failures are told as Events on the workloads; a dry mode writes none. */}}
{{- define "k8s-copycat.eventRules" -}}
{{- if and (ne (toString .Values.config.dryRun) "true") (ne (toString .Values.config.dryPull) "true") }}
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
{{- end -}}

{{/*
Whose pull secrets may be read, as a JSON list of namespaces; "*" stands for the whole cluster. Without a source to ask
(dryPull) none are needed, and what is not watched needs none.
*/}}
{{- define "k8s-copycat.secretNamespaces" -}}
{{- $watched := include "k8s-copycat.namespaces" . | fromJsonArray -}}
{{- $wanted := .Values.config.pullSecrets -}}
{{- if kindIs "invalid" $wanted }}{{ $wanted = "auto" }}{{ end -}}
{{- if kindIs "bool" $wanted }}{{ $wanted = "off" }}{{ end -}}
{{- $word := "" -}}
{{- if kindIs "string" $wanted -}}
{{- $word = $wanted | trim | lower -}}
{{- $wanted = regexSplit "[\\s,]+" (trim $wanted) -1 -}}
{{- end -}}
{{- $namespaces := list -}}
{{- if or (eq $word "off") (eq (toString .Values.config.dryPull) "true") -}}
{{- else if eq $word "auto" -}}
{{- $namespaces = $watched -}}
{{- else if eq $word "all" -}}
{{- $namespaces = ternary $watched (list "*") (gt (len $watched) 0) -}}
{{- else -}}
{{- range $wanted | uniq | sortAlpha -}}
{{- if and . (or (not $watched) (has . $watched)) }}{{ $namespaces = append $namespaces . }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $namespaces | toJson -}}
{{- end -}}

{{/* Secrets are read one by one, by name: whoever may list them has them all. */}}
{{- define "k8s-copycat.secretRules" -}}
- apiGroups: [""]
  resources: [secrets, serviceaccounts]
  verbs: [get]
{{- end -}}

{{- define "k8s-copycat.nodeRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
{{- end -}}

{{- define "k8s-copycat.leaseName" -}}
{{- .Values.config.leaseName | default (include "k8s-copycat.fullname" .) -}}
{{- end -}}

{{/* Leader election is on unless config.leaderElect is false: a rollout, too, runs two Pods for a while. */}}
{{- define "k8s-copycat.elects" -}}
{{- if ne (toString .Values.config.leaderElect) "false" }}true{{ end -}}
{{- end -}}

{{/* The port of config.metricsAddr (:8080, 0.0.0.0:9090); nothing if it is off. */}}
{{- define "k8s-copycat.metricsPort" -}}
{{- $address := .Values.config.metricsAddr | default ":8080" -}}
{{- if ne $address "0" -}}
{{- regexFind "[0-9]+$" $address -}}
{{- end -}}
{{- end -}}

{{- define "k8s-copycat.healthPort" -}}
{{- regexFind "[0-9]+$" (.Values.config.healthAddr | default ":8081") -}}
{{- end -}}

{{- define "k8s-copycat.checkTarget" -}}
{{- if eq .Values.config.targetKind "docker" -}}
{{- $_ := required "config.docker.registry: name the target registry's host" .Values.config.docker.registry -}}
{{- else -}}
{{- $_ := required "config.ecr.accountID: name the account of the target registry, or set config.targetKind to docker" .Values.config.ecr.accountID -}}
{{- $_ := required "config.ecr.region: name the region of the target registry" .Values.config.ecr.region -}}
{{- end -}}
{{- if and (gt (int .Values.replicas) 1) (not (include "k8s-copycat.elects" .)) -}}
{{- fail "config.leaderElect: must not be false with more than one replica, or every replica copies everything" -}}
{{- end -}}
{{- end -}}
