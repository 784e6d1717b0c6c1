// How slices and the volume are drawn. NiiVue gives the textures: "volume" holds grey levels after windowing, "overlay"
// the colours of labels, transparent where there is none; it also sets the uniforms that are not explained here,
// which it only finds where each is declared by itself.

// A slice: labels are taken voxel by voxel, not blended, and outlined where the next pixel but one has another colour.
const SLICE_SHADER = `#version 300 es
precision highp int;
precision highp float;
uniform highp sampler3D volume;
uniform highp sampler3D overlay;
uniform float overlays;
uniform float fill;      // opacity of a label's area
uniform float outline;   // width of its edge, in pixels of the screen; 0: none
uniform vec3 agreed;     // a colour whose opacity is another
uniform float faint;     // this one
in vec3 texPos;
out vec4 color;
vec4 label(vec3 place) {
  ivec3 size = textureSize(overlay, 0);
  return texelFetch(overlay, clamp(ivec3(place * vec3(size)), ivec3(0), size - 1), 0);
}
bool differs(vec4 one, vec4 other) {
  bool seen = one.a > 0.0, also = other.a > 0.0;
  return seen != also || (seen && distance(one.rgb, other.rgb) > 0.004);
}
void main() {
  color = vec4(texture(volume, texPos).rgb, 1.0);
  if (overlays < 1.0) return;
  vec4 here = label(texPos);
  if (here.a == 0.0) return;
  vec3 across = dFdx(texPos) * outline, down = dFdy(texPos) * outline;
  bool edge = outline > 0.0 && (differs(here, label(texPos + across)) || differs(here, label(texPos - across)) ||
    differs(here, label(texPos + down)) || differs(here, label(texPos - down)));
  float area = distance(here.rgb, agreed) < 0.004 ? faint : fill;
  color.rgb = mix(color.rgb, here.rgb, edge ? 1.0 : area);
}`;

const RENDER_VERTEX_SHADER = `#version 300 es
layout(location = 0) in vec3 pos;
layout(location = 1) in vec3 texCoords;
uniform mat4 mvpMtx;
out vec3 entry;
void main() {
  gl_Position = mvpMtx * vec4(pos, 1.0);
  entry = texCoords;
}`;

// The volume: labels as lit surfaces inside the scan, which absorbs and shines like fog, more where it is brighter.
const RENDER_SHADER = `#version 300 es
precision highp int;
precision highp float;
uniform highp sampler3D volume;
uniform highp sampler3D overlay;
uniform float overlays;
uniform float density;   // of the fog
uniform vec3 rayDir;
uniform vec3 volScale;
uniform vec3 texVox;
in vec3 entry;
out vec4 color;
const float SURFACE = 0.3;
float cover(vec3 place) { return texture(overlay, place).a; }
vec3 slopeAt(vec3 place, float voxels) {
  vec3 d = voxels / texVox;
  return vec3(
    cover(place + vec3(d.x, 0, 0)) - cover(place - vec3(d.x, 0, 0)),
    cover(place + vec3(0, d.y, 0)) - cover(place - vec3(0, d.y, 0)),
    cover(place + vec3(0, 0, d.z)) - cover(place - vec3(0, 0, d.z))) * texVox / volScale;
}
void main() {
  vec3 ray = rayDir / volScale;
  vec3 exits = max(-entry / ray, (1.0 - entry) / ray);
  float reach = min(exits.x, min(exits.y, exits.z));
  int steps = int(ceil(length(ray * reach * texVox) * 1.5)) + 1;
  float stride = reach / float(steps);
  // Starting at random depths turns the rings of equal steps into grain.
  float start = fract(sin(dot(gl_FragCoord.xy, vec2(12.9898, 78.233))) * 43758.5453);
  vec3 light = vec3(0.0);
  float opaque = 0.0;
  for (int i = 0; i < steps; i++) {
    float depth = (float(i) + start) * stride;
    vec3 place = entry + ray * depth;
    if (overlays > 0.0 && cover(place) > SURFACE) {
      float near = max(0.0, depth - stride), far = depth;
      for (int k = 0; k < 5; k++) {
        float middle = 0.5 * (near + far);
        if (cover(entry + ray * middle) > SURFACE) far = middle; else near = middle;
      }
      vec3 hit = entry + ray * far;
      vec4 own = vec4(0.0);  // of the first voxel behind the surface: between voxels, colours are mixed with nothing
      for (int k = 0; k < 6 && own.a == 0.0; k++) {
        vec3 inside = hit + ray * stride * 0.5 * float(k);
        own = texelFetch(overlay, ivec3(clamp(inside, 0.0, 0.9999) * vec3(textureSize(overlay, 0))), 0);
      }
      if (own.a > 0.0) {
        vec3 slope = slopeAt(hit, 1.0) + slopeAt(hit, 2.0) + slopeAt(hit, 3.0);
        float facing = length(slope) > 0.0 ? abs(dot(normalize(slope), normalize(rayDir))) : 1.0;
        light += (1.0 - opaque) * own.rgb * (0.28 + 0.72 * facing);
        opaque = 1.0;
        break;
      }
    }
    float grey = texture(volume, place).r;
    float thick = 1.0 - exp(-density * grey * grey * stride);
    light += (1.0 - opaque) * thick * vec3(grey);
    opaque += (1.0 - opaque) * thick;
    if (opaque > 0.98) break;
  }
  color = opaque > 0.0 ? vec4(light / opaque, opaque) : vec4(0.0);
}`;
